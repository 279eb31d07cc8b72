"""tools/gpu/quantized.py: what it finds wrong, with made-up runs; the runs themselves need a GPU to say anything."""

import sys
import types

import pytest
from conftest import ROOT

sys.path.insert(0, str(ROOT / "tools" / "gpu"))
PLAIN = {"tokens": [1, 2], "logits": b"a", "tokens_per_s": 10.0, "load_s": 1.0, "peak_mib": 3000}
LOSSY = {**PLAIN, "logits": b"b"}


def arguments(**more):
    options = {"modes": ["lossless", "q8"], "budgets": ["6G", "4G"], "resident": "60G", "most_slowdown": 5.0}
    return types.SimpleNamespace(**{**options, **more})


def table(monkeypatch, tmp_path, results):
    """The rows where runs give these results, by name; others the plain one's or the lossy one's."""
    import quantized

    def run(_, name, model, budget):
        return results.get(name, PLAIN if budget is None or name.startswith("lossless") else LOSSY)

    def pack(_, plain, mode):
        (tmp_path / mode).mkdir()
        return str(tmp_path / mode), 1.5

    monkeypatch.setattr(quantized, "run", run)
    monkeypatch.setattr(quantized, "pack", pack)
    rows = list(quantized.rows(arguments(), "model"))
    assert not list(tmp_path.iterdir())  # one packed form at a time is on the disk
    return rows


def test_all_is_well(monkeypatch, tmp_path):
    rows = table(monkeypatch, tmp_path, {})
    assert [text.split()[0] for text, _ in rows] == ["plain", *["lossless"] * 3, *["q8"] * 3]
    assert not any(wrong for _, wrong in rows)
    assert all(text.split()[-1] == "1.50" for text, _ in rows[1:])


@pytest.mark.parametrize(
    ("name", "result", "words"),
    [
        ("lossless-4G", LOSSY, "OTHER BITS"),
        ("q8-6G", PLAIN, "OTHER BITS"),
        ("q8-4G", {**LOSSY, "tokens_per_s": 1.9}, "MORE THAN 5 TIMES SLOWER"),
        ("q8-4G", {**LOSSY, "peak_mib": 4096 + 701}, "OVER BUDGET"),
        ("q8-60G", {"failed": "FAILED with 1; it said nothing"}, "FAILED with 1; it said nothing"),
    ],
)
def test_what_is_found(monkeypatch, tmp_path, name, result, words):
    rows = table(monkeypatch, tmp_path, {name: result})
    bad = [text for text, wrong in rows if wrong]
    assert len(bad) == 1 and bad[0].endswith(words)


def test_what_is_no_fault(monkeypatch, tmp_path):
    slow = {**PLAIN, "tokens_per_s": 1.0}
    rows = table(monkeypatch, tmp_path, {"lossless-4G": slow, "q8-6G": {**LOSSY, "tokens_per_s": 1.0}})
    assert not any(wrong for _, wrong in rows)


def test_sizes_are_those_of_the_budget():
    from quantized import size_of

    assert [size_of(text) for text in ("4G", "600M", "1048576", "1.5g", "512K")] == [4096, 600, 1, 1536, 0.5]
