import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memplan.engines.channel import Channel, ChannelClosedError


@pytest.fixture
def ends() -> Iterator[tuple[Channel, Channel]]:
    ours, theirs = Channel.pair()
    other = Channel(theirs)
    yield ours, other
    ours.close()
    other.close()


def everything(channel: Channel, count: int) -> list[dict[str, object]]:
    found: list[dict[str, object]] = []
    while len(found) < count:
        found += channel.receive(1.0)
    return found


def test_messages_arrive_whole_and_in_order(ends: tuple[Channel, Channel]) -> None:
    ours, theirs = ends
    ours.send({"n": 1}, {"n": 2, "text": "line\nbreak"})
    ours.send({"n": 3})
    assert everything(theirs, 3) == [{"n": 1}, {"n": 2, "text": "line\nbreak"}, {"n": 3}]


def test_both_ends_talk(ends: tuple[Channel, Channel]) -> None:
    ours, theirs = ends
    ours.send({"ask": 1})
    assert theirs.receive(1.0) == [{"ask": 1}]
    theirs.send({"answer": 2})
    assert ours.receive(1.0) == [{"answer": 2}]


def test_nothing_said_is_nothing_received(ends: tuple[Channel, Channel]) -> None:
    assert ends[0].receive(0.0) == []


def test_half_a_message_is_waited_for_and_then_whole() -> None:
    ours, theirs = socket.socketpair()
    channel = Channel(ours)
    with theirs:
        theirs.sendall(b'{"n":1}\n{"n"')
        assert channel.receive(1.0) == [{"n": 1}]
        theirs.sendall(b":2")
        assert channel.receive(0.01) == []
        theirs.sendall(b"}\n")
        assert channel.receive(1.0) == [{"n": 2}]
    channel.close()


def test_a_posted_message_longer_than_any_buffer_never_waits_for_its_reader(
    ends: tuple[Channel, Channel],
) -> None:
    ours, theirs = ends
    prompt = list(range(1_000_000))
    ours.post({"prompt": prompt})  # would block for ever if it waited: nobody reads yet
    got: list[dict[str, object]] = []
    while not got:
        assert ours.receive(0.0) == []  # what did not fit goes out here
        got = theirs.receive(0.0)
    assert got == [{"prompt": prompt}]


def test_a_message_sent_while_a_posted_one_is_still_going_out_does_not_cut_into_it(
    ends: tuple[Channel, Channel],
) -> None:
    ours, theirs = ends
    prompt = list(range(1_000_000))
    ours.post({"prompt": prompt})  # most of it is still here
    with ThreadPoolExecutor(1) as readers:
        heard = readers.submit(everything, theirs, 2)
        ours.send({"n": 2})
        assert heard.result() == [{"prompt": prompt}, {"n": 2}]


def test_the_other_end_gone_is_said_after_all_that_it_said(ends: tuple[Channel, Channel]) -> None:
    ours, theirs = ends
    theirs.send({"last": "words"})
    theirs.close()
    assert ours.receive(1.0) == [{"last": "words"}]
    with pytest.raises(ChannelClosedError):
        ours.receive(1.0)


def test_last_words_are_heard_even_while_something_is_still_to_be_sent(
    ends: tuple[Channel, Channel],
) -> None:
    ours, theirs = ends
    ours.post({"prompt": list(range(1_000_000))})
    theirs.send({"last": "words"})
    theirs.close()
    assert ours.receive(1.0) == [{"last": "words"}]
    with pytest.raises(ChannelClosedError):
        ours.receive(1.0)


@pytest.mark.parametrize("say", [Channel.send, Channel.post])
def test_nothing_can_be_said_to_an_end_that_is_gone(
    ends: tuple[Channel, Channel],
    say: object,
) -> None:
    ours, theirs = ends
    theirs.close()
    with pytest.raises(ChannelClosedError):
        say(ours, {"n": 1})  # type: ignore[operator]


@given(
    st.lists(st.one_of(st.none(), st.binary(max_size=60)), min_size=1, max_size=8),
    st.lists(st.integers(1, 40), max_size=30),
)
def test_bytes_come_whole_however_they_are_cut(
    contents: list[bytes | None], sizes: list[int]
) -> None:
    """Newlines in them, too; and messages without any between them."""
    messages = [
        {"n": n} if packed is None else {"n": n, "packed": packed}
        for n, packed in enumerate(contents)
    ]
    recorder, sink = Channel.pair()
    recorder.send(*messages)
    stream = sink.recv(1 << 20)
    ours, theirs = socket.socketpair()
    channel = Channel(ours)
    found: list[dict[str, object]] = []
    for size in [*sizes, len(stream)]:
        piece, stream = stream[:size], stream[size:]
        if piece:
            theirs.sendall(piece)
            found += channel.receive(0.01)
    assert found == messages
    for one in (recorder, channel):
        one.close()
    for end in (sink, theirs):
        end.close()
