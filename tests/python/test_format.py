"""docs/format.md says enough to read a store: a reader that was written from it alone gives what the golden files are
to decode to, and notices damage."""

import pytest
from conftest import ROOT

pytest.importorskip("xxhash")
pytest.importorskip("zstandard")
from store_reader import Damaged, Store  # noqa: E402

GOLDEN = sorted((ROOT / "tests" / "golden").glob("*.cws"))


@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
def test_a_golden_file_decodes(path):
    assert Store(path.read_bytes()).logical() == path.with_suffix(".safetensors").read_bytes()


def test_there_are_golden_files_of_every_codec():
    stores = [Store(path.read_bytes()) for path in GOLDEN]
    assert {t["codec"] for s in stores for t in s.tensors} == {0, 1, 2, 3}
    assert {c["codec"] for s in stores for c in s.chunks} == {0, 1, 2, 3}


def test_damage_is_noticed():
    data = (ROOT / "tests" / "golden" / "all-dtypes.cws").read_bytes()
    store = Store(data)
    places = [c["offset"] + c["stored"] // 2 for c in store.chunks] + [9, len(data) - 200, len(data) - 20]
    for at in places:
        with pytest.raises(Damaged):
            Store(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :]).logical()
