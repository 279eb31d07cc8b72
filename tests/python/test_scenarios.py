"""tools/gpu/scenarios.py: of its --modes each run takes one by the seed, and compares the store with its values."""

import argparse
import sys

import pytest
from conftest import ROOT, run

TOOL = ROOT / "tools" / "gpu" / "scenarios.py"
sys.path.insert(0, str(TOOL.parent))


def test_an_unknown_mode_is_refused(tmp_path):
    done = run(sys.executable, TOOL, tmp_path, "--modes", "q8,q9", check=False)
    assert done.returncode == 2 and done.stderr.endswith("argument --modes: q9: use lossless, q8, q6\n")


@pytest.mark.parametrize("stress", [0, 60])
def test_modes_are_chosen_by_the_seed(stress, tmp_path, monkeypatch):
    import scenarios
    import workers

    class Run:
        """A program that computes what its store's values are: those of each mode differ."""

        code, talk, seconds = 0, "", 1.0

        def __init__(self, arguments, name, model, *unused, **more):
            self.name, self.facts = name, model.removesuffix(".values").removesuffix(".store")
            runs.append(model)
            end.extend([0] * (len(runs) > 80))

    def stores(arguments, directory, mode):
        return f"{directory}.{mode}.values", f"{directory}.{mode}.store"

    def rows(seed):
        runs.clear()
        end.clear()
        arguments = argparse.Namespace(
            modes=list(workers.MODES), seed=seed, work=str(tmp_path), device="cuda", shape="tiny", jobs=1,
            stress=stress, only="generate,edits,batch,threads",
        )  # fmt: skip
        return sorted((scenarios.stress if stress else scenarios.check)(arguments))

    runs, end = [], []
    for shape in ("tiny", "llama-90m"):
        for mode in workers.MODES:
            for what in ("values", "store"):
                (tmp_path / f"{shape}.{mode}.{what}").mkdir()
        (tmp_path / shape).mkdir()
    monkeypatch.setattr(scenarios, "Run", Run)
    monkeypatch.setattr(workers, "stores", stores)
    monkeypatch.setattr(scenarios.time, "monotonic", lambda: 1000.0 * len(end))
    seen = rows(7)
    assert rows(7) == seen and rows(8) != seen
    assert {row[1] for row in seen} == {"as it should be"}
    if stress:
        assert {name.rsplit(".", 2)[1] for name in runs} == set(workers.MODES)
