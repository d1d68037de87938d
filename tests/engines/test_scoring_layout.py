"""Which tokens are scored, and where a text is continued."""

from __future__ import annotations

from memplan.engines.torch.scoring_layout import (
    ANSWERS,
    MOST_CHARACTERS,
    MOST_PASSAGES,
    MOST_SCORED,
    PIECE_TOKENS,
    PROMPT_TOKENS,
    WINDOW_TOKENS,
    ScoringLayout,
    passages_to_read,
    scoring_layout,
)


def layout(
    *lengths: int, begin: tuple[int, ...] = (), are_prompts: bool = True, context: int = 8192
) -> ScoringLayout:
    """Passages of consecutive ids: the first from 0, the second from 10,000."""
    passages = [range(10_000 * at, 10_000 * at + length) for at, length in enumerate(lengths)]
    return scoring_layout(passages, begin=begin, are_prompts=are_prompts, context_tokens=context)


def test_each_prompt_is_a_window_and_its_first_token_is_not_scored() -> None:
    found = layout(3, 2)
    assert found.windows == ((0, 1, 2), (10_000, 10_001))
    assert found.scored_tokens == 3


def test_what_the_model_wants_in_front_makes_the_first_token_count() -> None:
    found = layout(2, begin=(7,))
    assert found.windows == ((7, 0, 1),)
    assert found.scored_tokens == 2
    assert found.prompts == ((7, 0, 1),)


def test_a_long_text_is_cut_into_windows_up_to_the_most_that_is_scored() -> None:
    found = layout(5000, are_prompts=False)
    assert [len(window) for window in found.windows] == [WINDOW_TOKENS, WINDOW_TOKENS]
    assert found.windows[1][0] == WINDOW_TOKENS


def test_long_prompts_give_equal_shares_and_short_ones_are_whole() -> None:
    lengths = [len(window) for window in layout(3000, 48, 3000).windows]
    assert lengths == [1000, 48, 1000]
    assert sum(lengths) == MOST_SCORED


def test_a_short_context_makes_short_windows_and_prompts() -> None:
    found = layout(300, begin=(7,), context=100)
    assert [len(window) for window in found.windows] == [100, 100, 100, 4]
    assert len(found.prompts[0]) == 100 - 32


def test_a_context_without_room_for_an_answer_has_no_prompts() -> None:
    assert layout(300, context=32).prompts == ()


def test_of_many_prompts_a_few_are_continued_from_their_last_tokens() -> None:
    found = layout(*[10] * 20)
    assert len(found.windows) == 20
    assert len(found.prompts) == ANSWERS
    assert (found.prompts[0][0], found.prompts[-1][0]) == (0, 170_000)
    (long,) = layout(900).prompts
    assert long == tuple(range(900 - PROMPT_TOKENS, 900))


def test_a_text_is_continued_from_places_between_its_first_and_last_token() -> None:
    found = layout(2000, are_prompts=False)
    assert len(found.prompts) == ANSWERS
    assert {len(one) for one in found.prompts} == {PIECE_TOKENS}
    assert found.prompts[0][0] == 0
    assert found.prompts[-1][-1] == 1999


def test_a_text_shorter_than_a_piece_is_continued_once() -> None:
    assert layout(20, are_prompts=False).prompts == (tuple(range(20)),)


def test_a_prompt_without_tokens_is_no_prompt() -> None:
    assert layout(0, 3).prompts == ((10_000, 10_001, 10_002),)


def test_single_tokens_leave_nothing_to_score() -> None:
    assert layout(1, 1).windows == ()


def test_of_a_long_list_some_are_drawn_in_their_order_and_always_the_same() -> None:
    passages = [(number,) for number in range(1000)]
    drawn = passages_to_read(passages)
    assert len(drawn) == MOST_PASSAGES
    assert drawn == sorted(drawn) == passages_to_read(passages)
    assert drawn[0] < (200,) < (800,) < drawn[-1]
    assert passages_to_read(passages[:3]) == passages[:3]


def test_a_book_is_not_read_to_its_end() -> None:
    assert passages_to_read(["a" * 10**6]) == ["a" * MOST_CHARACTERS]
