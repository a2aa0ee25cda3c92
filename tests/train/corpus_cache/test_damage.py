"""Damage of a saved cache: flipped bytes, shortened and exchanged files are named, or give the same state."""

import json
import logging
import re
import shutil

import numpy as np
import pytest

from tests.train.corpus_cache.test_cache import N, build, everything, load, run
from train.corpus_cache import files, state
from train.corpus_cache.cache import CorpusCache
from train.corpus_cache.files import MANIFEST
from train.disk.row_sums import _odd, changed_sum, row_sum, whole_sum

KINDS = {  # a saved cache, and one with changes in its log; values that are computed from originals, and that are not
    "map": {"policy": "local+map"},
    "plain": {"policy": "local"},
    "half": {"policy": "local", "storage": "bfloat16"},
}


@pytest.fixture(scope="module", params=[(kind, saved) for kind in KINDS for saved in (True, False)], ids=str)
def made(request, tmp_path_factory):
    """A folder, and the state that it stands for."""
    kind, saved = request.param
    folder = tmp_path_factory.mktemp("made") / "cache"
    cache = build(folder, **KINDS[kind])
    run(cache, [1, 2, 3])
    if saved:
        cache.save()
    return folder, everything(cache)


def opened(folder, place, damaged, content):
    """The state that loading a copy gives whose file `damaged` is this, or the error."""
    shutil.rmtree(place, ignore_errors=True)
    shutil.copytree(folder, place)
    (place / damaged).write_bytes(content)
    try:
        return everything(load(place)), None
    except (ValueError, FileNotFoundError) as error:
        return None, error


def check(folder, truth, place, damaged, content):
    """Refused by the file's name, or the same state; returns whether it was refused."""
    found, error = opened(folder, place, damaged, content)
    if error is not None:
        assert damaged in str(error) or "names" in str(error), error
        return True
    different = [name for name in truth if not np.array_equal(truth[name], found[name])]
    assert different == [], f"{damaged}: another state was accepted"
    return False


def spots(size, count, seed):
    """Bytes to damage: the first ones, the last one, and others at random."""
    drawn = np.random.default_rng(seed).integers(max(1, size), size=count).tolist()
    return sorted({0, 1, 40, size // 2, size - 1, *drawn} & set(range(size)))


def test_a_flipped_bit_of_any_file_is_refused_or_repaired(made, tmp_path):
    folder, truth = made
    refused = total = 0
    for number, file in enumerate(sorted(folder.iterdir())):
        data = file.read_bytes()
        for at in spots(len(data), 3, number):
            flipped = bytearray(data)
            flipped[at] ^= 1 << (at % 8)
            total += 1
            refused += check(folder, truth, tmp_path / "copy", file.name, bytes(flipped))
    assert total > 50
    assert refused > 0.6 * total, "what is computed from other files is repaired, the rest refused"


def test_a_shortened_or_lengthened_file_is_refused(made, tmp_path):
    """The log's whole records are a state of their own, of an earlier step: the maps that went on tell."""
    folder, truth = made
    for file in sorted(folder.iterdir()):
        data = file.read_bytes()
        for content in [data[:at] for at in spots(len(data), 2, 0)] + ([data + b"\0"] if data else []):
            refused = check(folder, truth, tmp_path / "copy", file.name, content)
            assert refused or file.suffix in (".log", ".json"), f"{file.name} of {len(content)} bytes was accepted"


def test_a_log_that_lost_its_end_is_noticed(made, tmp_path):
    """The maps hold what it no longer says."""
    folder, _ = made
    log = next(folder.glob("*.log"))
    data = log.read_bytes()
    errors = [opened(folder, tmp_path / "copy", log.name, data[:at])[1] for at in spots(len(data), 3, 1)]
    assert all(error is not None and "is damaged" in str(error) for error in errors)


def test_every_byte_of_a_record_s_header_counts(tmp_path):
    """A length that is too large looks like a record that a kill has cut off, but for the header's own checksum."""
    cache = build(tmp_path / "cache")
    run(cache, [1])
    log = next((tmp_path / "cache").glob("*.log"))
    data = log.read_bytes()
    for at in range(files._HEADER.size):
        flipped = data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :]
        _, error = opened(tmp_path / "cache", tmp_path / "copy", log.name, flipped)
        assert f"{log.name} is damaged at byte 0" in str(error)


def test_exchanged_files_are_refused(made, tmp_path):
    folder, truth = made
    names = json.loads((folder / MANIFEST).read_text())["files"]
    arrays = [name for name in names if name != "changes"]
    refused = 0
    for one, other in zip(arrays, arrays[1:] + arrays[:1], strict=True):
        place = tmp_path / "copy"
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(folder, place)
        shutil.copy(folder / names[one], place / names[other])
        shutil.copy(folder / names[other], place / names[one])
        either = "|".join(map(re.escape, names.values()))
        with pytest.raises(ValueError, match=f"(?:{either}) is damaged"):
            load(place)
        refused += 1
    assert refused > 6
    assert check(folder, truth, tmp_path / "whole", MANIFEST, (folder / MANIFEST).read_bytes()) is False, "the control"


def test_two_arrays_of_one_shape_cannot_change_places(tmp_path):
    """`row_step`, `retrieved` and `tokens` are all (n,) int32: only the checksum tells them apart."""
    cache = build(tmp_path / "cache")
    run(cache, [1, 2])
    cache.save()
    names = json.loads((tmp_path / "cache" / MANIFEST).read_text())["files"]
    one, other = (tmp_path / "cache" / names[name] for name in ("row_step", "retrieved"))
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)
    with pytest.raises(ValueError, match=r"\d-re\w+.npy is damaged: it does not match its checksum"):
        load(tmp_path / "cache")


def test_damaged_values_are_computed_again_and_named(tmp_path, caplog):
    cache = build(tmp_path / "cache")
    run(cache, [1, 2])
    cache.save()
    truth = everything(cache)
    del cache
    file = next((tmp_path / "cache").glob("*-vectors.npy"))
    data = bytearray(file.read_bytes())
    data[5000] ^= 64
    file.write_bytes(data)
    with caplog.at_level(logging.WARNING):
        again = load(tmp_path / "cache")
    assert f"{file.name} does not match its checksum: its values are computed again" in caplog.text
    assert np.array_equal(everything(again)["vectors"], truth["vectors"])
    caplog.clear()
    assert np.array_equal(everything(load(tmp_path / "cache"))["vectors"], truth["vectors"])
    assert not caplog.text, "what was repaired stays repaired"


def test_a_damaged_file_is_named_where_it_was_copied_from(tmp_path):
    """Stage 2 continues in a copy of the checkpoint's cache: the checkpoint's file is the one to replace."""
    cache = build(tmp_path / "cache")
    run(cache, [1])
    cache.save(tmp_path / "snapshot")
    file = next((tmp_path / "snapshot").glob("*-originals.npy"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(ValueError, match=re.escape(str(file))):
        load(tmp_path / "snapshot", working=tmp_path / "work")


def test_a_shortened_map_is_not_lengthened_by_opening_it(tmp_path):
    """Regression: a memory map opened for writing fills a file that is too short with zeros."""
    build(tmp_path)
    file = next(tmp_path.glob("*-originals.npy"))
    whole = file.stat().st_size
    file.write_bytes(file.read_bytes()[: whole // 2])
    for _ in range(2):
        with pytest.raises(ValueError, match=f"has {whole // 2:,} bytes instead of {whole:,}"):
            load(tmp_path)
    assert file.stat().st_size == whole // 2


def test_without_checksums_another_state_is_accepted(tmp_path, monkeypatch):
    """The control: the flips above change the state, and nothing else would notice."""
    cache = build(tmp_path / "cache", "local")
    run(cache, [1, 2])
    cache.save()
    truth = everything(cache)
    monkeypatch.setattr(state.CacheState, "_intact", lambda self, name: True)
    file = next((tmp_path / "cache").glob("*-row_step.npy"))
    data = bytearray(file.read_bytes())
    data[-4] ^= 1
    found, error = opened(tmp_path / "cache", tmp_path / "copy", file.name, bytes(data))
    assert error is None
    assert not np.array_equal(found["row_step"], truth["row_step"])


def test_a_folded_log_leaves_the_values_to_the_next_reader(tmp_path):
    """A pass over all values at every fold would cost more than the refreshes between."""
    cache = build(tmp_path, log_megabytes=0)
    run(cache, [1, 2])
    arrays = json.loads((tmp_path / MANIFEST).read_text())["arrays"]
    assert [name for name, one in arrays.items() if one["sum"] is None] == ["vectors"]
    truth = everything(cache)
    file = next(tmp_path.glob("*-vectors.npy"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    assert np.array_equal(everything(load(tmp_path))["vectors"], truth["vectors"])


def test_a_record_that_could_not_be_written_hides_none_that_follows(tmp_path, monkeypatch):
    """Regression: half of a record stayed in the log, and the next one behind it made the log unreadable."""
    cache = build(tmp_path)
    run(cache, [1])
    before = everything(cache)
    log = next(tmp_path.glob("*.log"))
    size = log.stat().st_size

    class Full:
        def __init__(self, stream):
            self.stream = stream
            self.fileno = stream.fileno

        def write(self, data):
            self.stream.write(data[:100])
            raise OSError(28, "No space left on device")

    folder = cache._state.folder
    stream = folder._log
    folder._log = Full(stream)
    with pytest.raises(OSError, match=r"[\d,]+ bytes needed, [\d,]+ bytes free") as failed:
        run(cache, [2])
    assert failed.value.filename == str(log)
    assert log.stat().st_size == size
    assert all(np.array_equal(before[name], array) for name, array in everything(cache).items())
    folder._log = stream
    run(cache, [2])
    assert np.array_equal(everything(load(tmp_path))["originals"], everything(cache)["originals"])


# ----------------------------------------------------------------------------------------------------- the checksum


@pytest.mark.parametrize("dtype", [np.float32, np.int32, np.uint16, np.float16, np.int64, np.float64])
@pytest.mark.parametrize("shape", [(50,), (50, 3), (7, 5, 3)])
def test_sums_by_hand(dtype, shape):
    array = (np.random.default_rng(0).normal(size=shape) * 100).astype(dtype)
    whole = whole_sum(array)
    data = bytearray(array.tobytes())
    for bit in range(8 * len(data)):  # every single bit
        data[bit // 8] ^= 1 << (bit % 8)
        assert whole_sum(np.frombuffer(bytes(data), dtype).reshape(shape)) != whole
        data[bit // 8] ^= 1 << (bit % 8)
    assert whole_sum(array[::-1].copy()) != whole
    rows, values = np.array([4, 1]), np.ones((2, *shape[1:]), dtype)
    expected = array.copy()
    expected[rows] = values
    assert changed_sum(whole, array, rows, values) == whole_sum(expected)
    assert row_sum(rows[:0], values[:0]) == 0


def test_the_numbers_of_rows_and_words_are_odd_and_differ():
    """An even one could lose the highest bits of a difference."""
    numbers = _odd(np.arange(100_000, dtype=np.uint64))
    assert (numbers % 2 == 1).all()
    assert len(np.unique(numbers)) == len(numbers)


def test_sums_do_not_depend_on_the_size_of_blocks(monkeypatch):
    array = np.random.default_rng(0).normal(size=(100, 6)).astype(np.float32)
    whole = whole_sum(array)
    for size in (24, 25, 240, 2399, 2400, 10**6):
        monkeypatch.setattr("train.disk.row_sums._BLOCK_BYTES", size)
        assert whole_sum(array) == whole
    # By hand: one row of one word.
    one = np.array([3], np.int32)
    assert row_sum(np.array([0]), 2 * one) == 2 * row_sum(np.array([0]), one) % 2**64
    assert row_sum(np.array([1]), one) != row_sum(np.array([0]), one)


def test_refreshes_keep_the_sums_of_the_whole_arrays(tmp_path):
    cache = build(tmp_path, "local+map")
    run(cache, range(1, 6))
    folder = cache._state.folder
    assert set(folder.sums) == set(folder.maps) - {"vectors"}
    assert all(folder.sums[name] == whole_sum(folder.arrays[name]) for name in folder.sums)
    cache.save()
    assert folder.sums["vectors"] == whole_sum(cache.vectors)


def test_an_audit_that_changes_the_budget_keeps_them_as_well(tmp_path):
    cache = build(tmp_path, "local", error_bound=1e-6, budget_tokens=100, budget_limit_tokens=400)
    run(cache, [1])
    cache.audit(100, lambda texts: -np.asarray(cache.values(np.array([int(t.split()[-1]) for t in texts]))), step=2)
    assert cache.budget_factor == 2.0
    assert load(tmp_path).budget_factor == 2.0


def test_a_cache_of_the_format_before_is_named(tmp_path):
    cache = build(tmp_path)
    assert len(cache) == N
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    (tmp_path / MANIFEST).write_text(json.dumps(manifest | {"format": 2}))
    with pytest.raises(ValueError, match=f"format 2, this version reads {files.FORMAT}"):
        CorpusCache.load(tmp_path, ["a"], fingerprint="", dim=2)
