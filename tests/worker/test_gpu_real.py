"""The benchmark for a real GPU, with tiny shapes on the CPU: it stays runnable where no GPU is."""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
# Several processes that each load torch, one after the other.
pytestmark = pytest.mark.timeout(600)


def run(file: Path, *options: str) -> tuple[int, dict[str, Any], str]:
    """Exit code, JSON file and printed table of a run of the benchmark."""
    command = [sys.executable, str(BENCHMARKS / "gpu_real.py"), "--tiny", "--json", str(file)]
    command += ["--minutes", "60", *options]  # a slow machine leaves nothing out
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert file.exists(), ended.stderr
    return ended.returncode, json.loads(file.read_text()), ended.stdout


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, dict[str, Any], str]:
    """A run with batches of one and two."""
    return run(tmp_path_factory.mktemp("gpu_real") / "report.json", "--batches", "1,2")


def by_case(report: dict[str, Any]) -> dict[tuple[str, int, int], dict[str, Any]]:
    return {(case["path"], case["batch"], case["references"]): case for case in report["cases"]}


def test_every_case_is_measured(whole: tuple[int, dict[str, Any], str]) -> None:
    """A run measures loop and worker with every batch, without and with references, in ratios and in memory."""
    code, report, table = whole
    cases = by_case(report)
    plain = {(path, batch, count) for path in ("pipeline", "worker") for batch in (1, 2) for count in (0, 2)}
    assert set(cases) == plain | {("worker, one call at a time", 1, 0), ("pipeline, once more", 1, 0)}
    assert code == 0
    for key, case in cases.items():
        assert case["status"] == "measured", case
        assert case["images_per_s"] > 0, case
        assert case["ratio"] == pytest.approx(case["images_per_s"] / cases["pipeline", 1, key[2]]["images_per_s"])
        assert case["peak_memory_mb"] > 50, case
        assert f"| {case['name']} | {case['references']} | {case['images_per_s']:.3f} |" in table
    for count in (0, 2):
        assert cases["pipeline", 1, count]["ratio"] == 1
        for batch in (1, 2):
            worker, pipeline = cases["worker", batch, count], cases["pipeline", batch, count]
            assert worker["ratio_to_pipeline"] == pytest.approx(worker["images_per_s"] / pipeline["images_per_s"])
            assert 1 <= worker["images_per_batch"] <= batch
            assert 0 < worker["model_busy"] <= 1
    assert report["encoding_ms"].keys() == {"png", "jpeg", "webp"}
    assert report["added_ms"].keys() == {"one_call_ms", "of_it_png_ms", "gateway_ms"}
    assert report["worker_start_s"].keys() == {"1", "2"}


def test_the_worker_draws_what_the_loop_draws(whole: tuple[int, dict[str, Any], str]) -> None:
    """A seed gives the loop's picture, pixel for pixel in batches of one, within two levels in larger ones."""
    for (path, batch, references), case in by_case(whole[1]).items():
        if (path, batch) == ("pipeline", 1):
            continue  # this is the loop itself
        against = case["against_loop"]
        assert (against["compared"], against["same_size"]) == (case["images"], True), (path, batch, references)
        assert against["largest_difference"] <= 2, (path, batch, references)
        if batch == 1:
            assert against["identical"] == case["images"], (path, references)


def test_a_case_that_fails_is_a_line_and_not_the_end(tiny: dict[str, Path], tmp_path: Path) -> None:
    """References that the model cannot take fail their cases, with the reason; the others are measured."""
    options = ("--model", str(tiny["distilled"]), "--batches", "1", "--reference-size", "1000x40")
    code, report, table = run(tmp_path / "report.json", *options)
    assert code == 1
    for case in report["cases"]:
        assert case["status"] == ("failed" if case["references"] else "measured"), case
    broken = [case for case in report["cases"] if case["references"]]
    assert {case["path"] for case in broken} == {"pipeline", "worker"}
    for case in broken:
        assert "1000" in case["reason"] or "64" in case["reason"], case["reason"]
        assert f"| {case['name']} | 2 | failed: {case['reason']} |" in table
        assert case["images_per_s"] is None
        assert case["ratio"] is None


def test_a_process_that_ends_is_a_line_too(tmp_path: Path) -> None:
    """Where neither pipeline nor worker can load the checkpoint, every case says why."""
    nothing = tmp_path / "no-klein-4B"
    nothing.mkdir()
    code, report, _ = run(tmp_path / "report.json", "--model", str(nothing), "--batches", "1")
    assert code == 1
    assert len(report["cases"]) == 6
    for case in report["cases"]:
        assert (case["status"], "model_index.json" in case["reason"]) == ("failed", True), case


def test_what_does_not_fit_into_the_time_is_left_out(tmp_path: Path) -> None:
    """Without time nothing is started, and each case says that it was left out; that is no failure."""
    code, report, table = run(tmp_path / "report.json", "--minutes", "0")
    assert code == 0
    assert len(report["cases"]) == 18
    assert {case["status"] for case in report["cases"]} == {"skipped"}
    assert {case["images_per_s"] for case in report["cases"]} == {None}
    assert table.count("skipped: no time left of 0 minutes") == 18


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """A module of the benchmark by its name."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return lambda name: importlib.import_module(f"gpu_parts.{name}")


def test_a_case_is_left_out_by_what_like_ones_took(parts: Callable[[str], Any]) -> None:
    """The time of a case is told from the slowest one with as many references, its warm-up and the start included."""
    cases = parts("cases")
    case, outcome = cases.Case, cases.Outcome
    outcomes = [
        outcome(case("pipeline", 1, 0, 10), cases.MEASURED, figures={"seconds": 5.0}),
        outcome(case("pipeline", 4, 0, 10), cases.MEASURED, figures={"seconds": 4.0}),
        outcome(case("pipeline", 1, 2, 10), cases.MEASURED, figures={"seconds": 20.0}),
        outcome(case("pipeline", 4, 2, 10), cases.SKIPPED),
    ]
    assert cases.estimate(case("worker", 8, 0, 24), outcomes, start_s=30.0) == 30 + 0.5 * 32
    assert cases.estimate(case("worker", 4, 2, 8), outcomes) == 2 * 12
    assert cases.estimate(case("worker", 4, 1, 8), outcomes) == 0


def test_the_shapes_are_those_of_klein_4b(parts: Callable[[str], Any]) -> None:
    """The models have as many weights as the published files: 7.22 and 7.49 GiB in bfloat16, 0.31 GiB in float32."""
    torch = importlib.import_module("torch")
    with torch.device("meta"):
        models = parts("klein").real_parts()
    weights = {name: sum(tensor.numel() for tensor in model.parameters()) for name, model in models.items()}
    assert weights["text_encoder"] == 4_022_468_096  # the published count of Qwen3-4B
    sizes = {name: count * (4 if name == "vae" else 2) / 2**30 for name, count in weights.items()}
    assert {name: round(size, 2) for name, size in sizes.items()} == {
        "transformer": 7.22,
        "text_encoder": 7.49,
        "vae": 0.31,
    }


def test_what_is_missing_is_named_with_its_version(parts: Callable[[str], Any]) -> None:
    """On a machine that has torch alone, what to carry is named with the versions that fit, needs of needs included."""
    packages = parts("packages")
    there = {"prefect-imagegen": "0.1.0", "torch": "2.11.0+cu130", "diffusers": "0.41.0", "click": "8.1.7"}
    wanted = {
        "prefect-imagegen": [
            "prefect>=3.8",
            "click>=8.1",
            "fastapi<0.151",
            "torch>=2.6; extra == 'diffusers'",
            "diffusers<0.43,>=0.42; extra == 'diffusers'",
            "s3fs; extra == 's3'",
        ],
        "torch": ["sympy", "triton; platform_system == 'Nowhere'"],
    }
    needs = {need.name: need for need in packages.needs(there.get, lambda name: wanted.get(name, []))}
    assert set(needs) == {"prefect-imagegen", "click", "fastapi", "torch", "diffusers", "sympy"}
    assert {name for name, need in needs.items() if not need.fits} == {"fastapi", "diffusers", "sympy"}
    lines = "\n".join(packages.report(list(needs.values())))
    assert "diffusers<0.43,>=0.42  (0.41.0 is here)" in lines
    assert "fastapi<0.151  (missing)" in lines


_WITHOUT_THE_REST = """
import sys
from importlib.machinery import PathFinder
from importlib.metadata import packages_distributions
from gpu_parts.packages import needs

needed = {need.name for need in needs()}
owners = packages_distributions()

class Present(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        owned = {owner.lower().replace("_", "-") for owner in owners.get(name.partition(".")[0], [])}
        return None if owned and not owned & needed else PathFinder.find_spec(name, path, target)

sys.meta_path[sys.meta_path.index(PathFinder)] = Present
import gpu_parts.worker, gpu_parts.pipeline, gpu_parts.processes
import prefect_imagegen.cli.main, prefect_imagegen.gateway.server
from diffusers import AutoencoderKLFlux2, Flux2KleinPipeline, Flux2Transformer2DModel
print(sorted(name for name in ("prefect", "torch") if name in sys.modules))
"""


def test_nothing_else_is_needed(parts: Callable[[str], Any]) -> None:
    """Worker, client and pipeline load where only what `--check` knows of is installed; Prefect is not of it."""
    path = os.pathsep.join(filter(None, (str(BENCHMARKS), os.environ.get("PYTHONPATH"))))
    command = [sys.executable, "-c", _WITHOUT_THE_REST]
    ended = subprocess.run(command, check=False, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": path})
    assert (ended.returncode, ended.stdout.strip()) == (0, "['torch']"), ended.stderr
