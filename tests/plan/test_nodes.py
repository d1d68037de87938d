import pytest

from memplan.errors import InputError
from memplan.plan.nodes import COLUMNS, parse_nodes
from memplan.units import GIB, MIB

HEADER = ",".join(COLUMNS)
CPU_ROW = "aws,r8g.24xlarge,cpu,us-east-1,96,768.0,742.2,measured,,0,,5.65536,,,,prices,shapes,2026"
GPU_ROW = "gcp,a3,gpu,us,26,234.0,,,h100,1,81920,11.0612,7.673,4.858,6.3262,prices,shapes,2026"


def catalog(*rows: str) -> str:
    return "\n".join((HEADER, *rows)) + "\n"


def test_a_row_becomes_a_node_in_bytes_and_dollars() -> None:
    (node,) = parse_nodes(catalog(GPU_ROW), "nodes.csv")
    assert (node.provider, node.instance, node.region, node.vcpu) == ("gcp", "a3", "us", 26)
    assert node.memory_nominal_bytes == 234 * GIB
    assert node.gpu_memory_bytes_each == 81920 * MIB
    assert (node.usd_per_h_on_demand, node.usd_per_h_1y) == (11.0612, 7.673)
    assert (node.usd_per_h_3y, node.usd_per_h_spot) == (4.858, 6.3262)
    assert (node.price_source, node.shape_source, node.date) == ("prices", "shapes", "2026")
    assert node.has_gpu


def test_a_blank_cell_stays_unknown_and_is_never_guessed() -> None:
    (node,) = parse_nodes(catalog(CPU_ROW), "nodes.csv")
    assert node.usd_per_h_1y is None
    assert node.usd_per_h_spot is None
    assert node.gpu is None
    assert node.gpu_memory_bytes_each is None
    assert node.gpu_count == 0
    assert not node.has_gpu


def test_measured_memory_comes_before_the_price_lists_figure() -> None:
    cpu, gpu = parse_nodes(catalog(CPU_ROW, GPU_ROW), "nodes.csv")
    assert cpu.memory_bytes == round(742.2 * GIB)
    assert gpu.memory_bytes == 234 * GIB


def test_all_faults_of_a_file_are_told_at_once_with_their_lines() -> None:
    bad_number = CPU_ROW.replace(",96,", ",many,")
    no_name = GPU_ROW.replace(",a3,", ",,")
    no_memory = GPU_ROW.replace(",a3,", ",a4,").replace("234.0", "")
    negative = GPU_ROW.replace(",a3,", ",a5,").replace("11.0612", "-1")
    endless = GPU_ROW.replace(",a3,", ",a6,").replace("11.0612", "inf")
    with pytest.raises(InputError) as caught:
        parse_nodes(catalog(bad_number, no_name, no_memory, negative, endless), "nodes.csv")
    message = caught.value.message
    assert message.startswith("nodes.csv: 5 faults")
    assert "nodes.csv:2: vcpu: got 'many'" in message
    assert "nodes.csv:3: instance: got a blank cell" in message
    assert "nodes.csv:4: mem_gib_nominal: got a blank cell" in message
    assert "nodes.csv:5: usd_h_ondemand: got '-1'" in message
    assert "nodes.csv:6: usd_h_ondemand: got 'inf'" in message
    assert caught.value.hint


def test_a_node_listed_twice_is_a_fault_that_names_both_lines() -> None:
    with pytest.raises(InputError, match=r"nodes.csv:3: r8g.24xlarge .* already on line 2"):
        parse_nodes(catalog(CPU_ROW, CPU_ROW), "nodes.csv")


def test_a_missing_column_is_told_by_name() -> None:
    with pytest.raises(InputError, match=r"nodes.csv:1: got a header without usd_h_3y, date"):
        parse_nodes(catalog().replace("usd_h_3y,", "").replace(",date", ""), "nodes.csv")


def test_an_empty_file_is_a_missing_header_and_an_empty_catalog_is_no_fault() -> None:
    with pytest.raises(InputError, match="got a header without provider"):
        parse_nodes("", "nodes.csv")
    assert parse_nodes(catalog(), "nodes.csv") == ()


def test_a_byte_order_mark_and_a_further_column_do_no_harm() -> None:
    text = "\ufeff" + catalog(CPU_ROW).replace("date\n", "date,remark\n")
    assert parse_nodes(text, "nodes.csv")[0].instance == "r8g.24xlarge"
