"""The sections over HTTP, on figures made up for the purpose: no server runs, nothing is timed."""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path

import pytest

from loadtest.bench import http, infinity, latency, memory, serving, serving_plots, startup
from loadtest.bench.options import Options
from loadtest.bench.rounds import Rounds, SideFailed
from loadtest.http_client import Load
from loadtest.ports import free_port
from loadtest.prompts import make_prompt
from loadtest.server_process import NotStarted, process, wait_for
from prompt_store import BackboneRef

HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\n"
    b"Server-Timing: queue;dur=2.000, tokenize;dur=0.500, forward;dur=4.000"
)


def a_load(*latencies: float, cpu: float = 0.0, seconds: float = 1.0, unanswered: int = 0) -> Load:
    found = tuple(sorted(latencies))
    return Load(len(found) + unanswered, len(found), 0, unanswered, 0, seconds, cpu, found, lags=(0.001,))


def a_side(*loads: Load) -> http.HttpSide:
    with process(["true"]) as ended:
        return http.HttpSide("x", "", ended, iter(()), list(loads), [0.0] * len(loads))


def test_the_parts_of_a_request_add_up_to_its_latency() -> None:
    assert latency.server_timing(HEAD) == {"queue": 0.002, "tokenize": 0.0005, "forward": 0.004}
    parts = latency.parts([(0.008, HEAD), (0.010, HEAD)])
    assert parts == pytest.approx({"queue": 0.002, "tokenise": 0.0005, "forward": 0.004, "rest": 0.0025})
    assert sum(parts.values()) == pytest.approx(0.009)


def test_an_answer_without_timings_is_all_rest() -> None:
    assert latency.parts([(0.008, b"HTTP/1.1 200 OK\r\ncontent-length: 2")])["rest"] == 0.008
    assert sum(latency.parts([]).values()) == 0


def test_idle_latency_stands_over_the_one_row_forward() -> None:
    rounds = Rounds({latency.ONE_ROW: [0.002, 0.002], latency.IDLE: [0.003, 0.003]})
    idle = latency.LoadSide("", iter(()), None, [a_load(0.003), a_load(0.003)])
    busy = latency.LoadSide("", iter(()), 7.0, [a_load(0.003, 0.009), a_load(0.003, 0.009)])
    first, second, third = latency._ratios(rounds, {latency.IDLE: idle, "70%": busy}, 6.0)
    assert first.value == pytest.approx(1.5)
    assert second.value == pytest.approx(3.0)
    assert third.value == 6.0
    assert [ratio.verdict for ratio in (first, second, third)] == ["met", "met", "met"]


def test_a_log_tells_the_stages_of_a_start() -> None:
    log = "\n".join(
        [
            '{"event": "settings", "timestamp": "2026-01-01T00:00:01.500000Z"}',
            "promptmux serves 3 tasks",
            '{"event": "something else", "timestamp": "2026-01-01T00:00:01.700000Z"}',
            '{"event": "backbone_loaded", "timestamp": "2026-01-01T00:00:04.000000Z"}',
        ]
    )
    began = 1767225600.0
    stages = startup.stages(log, began, began + 5.0)
    assert stages == pytest.approx(
        {
            "interpreter and imports": 1.5,
            "torch, transformers and the backbone": 2.5,  # the log skips one: its time is in the next
            startup.LAST: 1.0,
        }
    )


def test_the_best_form_of_infinity_is_the_fastest_that_ran() -> None:
    rounds = Rounds({"ours": [0.1], infinity.AS_IT_COMES: [0.4], "infinity bfloat16": [0.3]})
    assert http.best_form(rounds) == "infinity bfloat16"
    assert http.best_form(Rounds({"ours": [0.1]})) is None


def test_http_ratios_take_the_generators_time_out() -> None:
    own = "ours"
    rounds = Rounds(
        {
            http.FORWARD: [0.001, 0.001],
            own: [0.00125, 0.00125],
            infinity.AS_IT_COMES: [0.005, 0.005],
            "infinity bfloat16": [0.0025, 0.0025],
        }
    )
    cores = os.cpu_count() or 1
    side = a_side(a_load(0.1, cpu=0.1 * cores), a_load(0.1, cpu=0.1 * cores))  # a tenth of all processor time
    best, comes, forward = http._ratios(rounds, {own: side}, own)
    assert best.value == pytest.approx(2.0)
    assert best.note == "infinity bfloat16"
    assert comes.value == pytest.approx(4.0)
    assert forward.value == pytest.approx(0.8 / 0.9)


def test_without_infinity_its_ratios_say_so() -> None:
    rounds = Rounds({http.FORWARD: [0.001], "ours": [0.002]})
    best, comes, _ = http._ratios(rounds, {"ours": a_side(a_load(0.1))}, "ours")
    assert best.verdict == comes.verdict == "not measured"


def test_the_http_section_is_plain_json_even_where_nothing_was_answered(tmp_path: Path) -> None:
    rounds = Rounds({http.FORWARD: [0.001], "ours": [0.002]})
    points = {"ours": [http.OpenPoint(100.0, a_load(0.1)), http.OpenPoint(200.0, a_load(0.1, unanswered=9))]}
    section = http._section(
        rounds, {"ours": a_side(a_load(0.1))}, {"infinity": "no"}, points, "ours", Options(out=tmp_path)
    )
    json.dumps(section.raw, allow_nan=False)
    assert [file.is_file() for file in section.plots] == [True]
    assert any(row[0] == "infinity" for row in section.tables[0].rows)
    assert "infinity is missing: no" in section.tables[0].note


def test_loads_with_failures_are_no_measurement() -> None:
    assert serving.clean(a_load(0.1)).answered == 1
    for load in (a_load(), a_load(0.1, unanswered=1)):
        with pytest.raises(SideFailed):
            serving.clean(load)


def test_a_metric_is_found_by_its_whole_name() -> None:
    text = '# HELP a_bytes x\na_bytes_total 7.0\na_bytes 3.5e+06\nb{tier="device"} 2.0\nb{tier="host"} 3.0\n'
    assert serving.metric_in(text, "a_bytes") == 3_500_000
    assert serving.metric_in(text, 'b{tier="device"}') == 2
    with pytest.raises(KeyError):
        serving.metric_in(text, "a")


def test_pictures_are_drawn_with_points_that_have_no_end(tmp_path: Path) -> None:
    curves = {"ours": [(10.0, 0.01, 0.02), (20.0, 0.02, math.inf)], "gone": [(1.0, math.inf, math.inf)]}
    assert serving_plots.throughput_against_p99(curves, tmp_path / "a.png").stat().st_size > 1000
    bars = {"idle": dict.fromkeys(serving_plots.PARTS, 0.001)}
    assert serving_plots.where_time_goes(bars, tmp_path / "b.png").stat().st_size > 1000


def test_a_prompts_file_is_counted_whole_and_a_folder_in_blocks(tmp_path: Path) -> None:
    shape = BackboneRef(
        name="tiny", fingerprint="0" * 64, layers=2, hidden_size=8, embedding_width=8, kv_heads=2, head_dim=4
    )
    _, tensors = make_prompt("x", "prefix", shape, seed=0)
    assert memory.file_bytes("prefix", shape) > sum(array.nbytes for array in tensors.values())
    assert memory.file_bytes("bare", shape) < memory.file_bytes("soft", shape)
    (tmp_path / "one").write_bytes(b"x" * 10_000)
    assert memory.disk_bytes(tmp_path) >= 10_000


def test_infinitys_checkpoint_is_the_backbone_with_a_fixed_head(tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification, BertConfig, BertModel

    backbone = BertModel(
        BertConfig(
            vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
        )
    )
    backbone.save_pretrained(tmp_path / "backbone")
    (tmp_path / "backbone" / "vocab.txt").write_text("[PAD]\n")
    for name in ("one", "two"):
        infinity.write_checkpoint(tmp_path / "backbone", tmp_path / name)
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("one", "two"))
    assert one == two
    assert (tmp_path / "one" / "vocab.txt").is_file()
    config = json.loads((tmp_path / "one" / "config.json").read_text())
    assert len(config["id2label"]) == 2
    served = AutoModelForSequenceClassification.from_pretrained(tmp_path / "one")
    assert torch.equal(
        served.bert.embeddings.word_embeddings.weight, backbone.embeddings.word_embeddings.weight
    )
    assert served.classifier.weight.shape == (2, 16)


def test_every_form_of_infinity_is_pinned() -> None:
    pins = http._pins()
    assert all(name in pins for name in ("infinity_emb", "torch", "transformers", "optimum", "onnxruntime"))


def test_a_server_process_ends_with_the_block() -> None:
    port = free_port()
    command = [sys.executable, "-m", "http.server", str(port), "--bind", "127.0.0.1"]
    with process(command) as started:
        wait_for(started, f"http://127.0.0.1:{port}/README.md", patience=30, pause=0.02)
        assert started.cpu_seconds() >= 0
    assert started.popen.returncode is not None


def test_a_server_that_ends_says_why() -> None:
    with (
        process([sys.executable, "-c", "print('no such model')"]) as started,
        pytest.raises(NotStarted, match="no such model"),
    ):
        wait_for(started, f"http://127.0.0.1:{free_port()}/", patience=30, pause=0.02)
