"""The forward's section: that sides compute the same thing, and that nothing is left out in silence."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from loadtest.bench import forward, ours, roofline
from loadtest.bench.options import Options
from loadtest.bench.own_sides import Corpus, Reference, write_prompts, write_work
from loadtest.bench.peer_sides import Peers, PeerSide, choose, difference, peer_sides, started, verify
from tests.backbone.families import checkpoint


@pytest.fixture(scope="module")
def options() -> Options:
    return Options(rounds=1, rows=40, batch=32, peers=(), backbone=str(checkpoint("bert")), quick=True)


@dataclasses.dataclass
class Prepared:
    reference: Reference
    files: dict[str, Path]
    sides: list[PeerSide]
    peers: Peers


@pytest.fixture(scope="module")
def prepared(options: Options, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prepared]:
    """Hugging Face and PEFT, which run in this very environment, on the built-in model."""
    options = dataclasses.replace(options, backbone="minilm")
    folder, corpus = tmp_path_factory.mktemp("work"), Corpus.make(options)
    reference = Reference(options, corpus, rows=6)
    files = write_work(reference.backbone, corpus, folder)
    write_prompts(reference.backbone, max(corpus.tasks) + 1, folder / "prompts.npz")
    sides = peer_sides(("huggingface", "peft"), folder / "prompts.npz", compiled=False)
    with started(sides, ours.folder("minilm"), Console(quiet=True)) as peers:
        yield Prepared(reference, files, sides, peers)


@pytest.mark.slow
def test_peers_compute_what_we_compute(prepared: Prepared, console: Console) -> None:
    verify(
        prepared.peers,
        prepared.sides,
        prepared.files,
        lambda side: prepared.reference.features(side.kind, side.texts, as_peft=side.peer == "peft"),
        console,
    )
    assert prepared.peers.failed == {}
    assert set(prepared.peers.differs) == {side.name for side in prepared.sides}
    assert {side.kind for side in prepared.sides} == {"bare", "soft", "prefix"}
    choose(prepared.peers, prepared.sides, prepared.files, 0, console)
    for side in (prepared.sides[0], prepared.sides[-1]):
        run = prepared.peers.side(side, prepared.peers.chosen[side.name], prepared.files[side.texts], 1)
        assert run() > 0


@pytest.mark.slow
def test_a_side_that_computes_something_else_is_out(prepared: Prepared, console: Console) -> None:
    sides = [side for side in prepared.sides if side.name in ("huggingface float32", "peft soft float32")]
    peers = Peers(workers=prepared.peers.workers)
    # Other prompts, and no prompts, in place of its own.
    verify(
        peers, sides, prepared.files, lambda side: prepared.reference.features("prefix", side.texts), console
    )
    assert set(peers.failed) == {side.name for side in sides}
    assert all("something else" in reason for reason in peers.failed.values())
    choose(peers, sides, prepared.files, 1, console)
    assert peers.chosen == {}


def test_difference_is_relative_and_never_lenient_with_nan() -> None:
    ones = np.ones((2, 4))
    assert difference(ones, ones) == 0
    assert difference(ones * 1.5, ones) == pytest.approx(0.5)
    assert difference(ones * np.nan, ones) == np.inf
    assert difference(ones[:1], ones) == np.inf


def test_a_peer_that_is_not_there_stays_in_the_table(
    options: Options, tmp_path: Path, console: Console, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("loadtest.bench.peer_sides.environment", lambda *_: Path("/bin/false"))
    asked = dataclasses.replace(options, peers=("openvino",), out=tmp_path)
    section = forward.measure(asked, console)
    rows = {row[0]: row[-1] for table in section.tables for row in table.rows}
    assert "not measured" in rows["openvino bfloat16"]
    unmeasured = {ratio.name: ratio for ratio in section.ratios if ratio.verdict == "not measured"}
    assert any("best peer" in name and ratio.note for name, ratio in unmeasured.items())
    assert any("PEFT" in name for name in unmeasured)
    assert {plot.name for plot in section.plots} == {"forward.png", "forward-tasks.png"}
    assert all(plot.stat().st_size > 0 for plot in section.plots)
    assert section.raw["rows_per_second"].keys() == section.raw["seconds_per_row"].keys()
    assert section.raw["differs_from_float32"]["ours eager: prefix, 32 tasks"] < 0.1


@pytest.mark.slow
def test_the_roofline_is_measured_beside_the_forward(options: Options, console: Console) -> None:
    section = roofline.measure(options, console)
    assert all(ratio.value and ratio.value > 0 for ratio in section.ratios)
    assert {"bfloat16, square", "float32, linear layers"} <= section.raw["rates"].keys()
