"""Token ids of a corpus are made once, by all processes, kept on disk, and made again where they are damaged."""

import logging
import struct

import numpy as np
import pytest

from tests.train.corpus_cache.test_cache import DIM, Encoder
from train.config.corpus_cache import CorpusCacheSettings
from train.corpus_cache.cache import CorpusCache
from train.corpus_cache.refresh_policies import Hits
from train.corpus_cache.texts import CorpusTexts
from train.disk import token_ids
from train.disk.token_ids import CorpusTokenizer
from train.processes.replicas import Replicas

TEXTS = [f"document {'long ' * (row % 7)}number {row}" for row in range(30)]
IDS = [[len(word) for word in text.split()] for text in TEXTS]


class Tokenizer:
    """Gives the lengths of words, and remembers what it was asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, texts):
        self.asked += texts
        return [[len(word) for word in text.split()] for text in texts]


@pytest.fixture(autouse=True)
def parts_of_eight(monkeypatch):
    monkeypatch.setattr(token_ids, "PART_ROWS", 8)


def measured(folder, name="words", texts=TEXTS, replicas=None):
    """The measured corpus, and how many texts were tokenised for it."""
    tokenizer = Tokenizer()
    corpus = CorpusTexts(texts, token_counts=CorpusTokenizer(tokenizer, name, folder)).measured(replicas or Replicas())
    found = corpus.token_ids.take(np.arange(len(texts))) if len(texts) == len(IDS) else None
    assert found in (IDS, None) or texts != TEXTS
    assert corpus.count().tolist() == [len(text.split()) for text in texts]
    return corpus, len(tokenizer.asked)


def test_the_second_time_nothing_is_tokenised(tmp_path):
    assert measured(tmp_path)[1] == 30
    corpus, asked = measured(tmp_path)
    assert asked == 0
    assert corpus.token_ids.take(np.array([29, 0, 8])) == [IDS[29], IDS[0], IDS[8]]
    assert sorted(file.name for file in next(tmp_path.iterdir()).iterdir()) == [f"0000{n}.tokens" for n in range(4)]
    offsets, ids = corpus.token_ids._parts[0]
    assert isinstance(offsets.base, np.memmap)
    assert (offsets.dtype, ids.dtype, len(offsets)) == (np.int64, np.int32, 9)


def test_what_was_made_otherwise_is_made_again(tmp_path):
    measured(tmp_path)
    for number, (name, texts) in enumerate(
        [("other", TEXTS), ("words", [*TEXTS[:-1], "two words"]), ("words", TEXTS[:20]), ("words", TEXTS[::-1])]
    ):
        assert measured(tmp_path, name, texts)[1] == len(texts)
        assert len(list(tmp_path.iterdir())) == number + 2
    assert measured(tmp_path)[1] == 0, "the first ones are still there"


def part(folder, number):
    return next(folder.glob(f"*/{number:05d}.tokens"))


def test_a_killed_process_goes_on_with_the_parts_that_are_missing(tmp_path):
    class Killed(Tokenizer):
        def __call__(self, texts):
            if len(self.asked) >= 16:
                raise KeyboardInterrupt
            return super().__call__(texts)

    with pytest.raises(KeyboardInterrupt):
        CorpusTexts(TEXTS, token_counts=CorpusTokenizer(Killed(), "words", tmp_path)).measured(Replicas())
    assert len(list(tmp_path.glob("*/*"))) == 2
    assert measured(tmp_path)[1] == 14


def test_any_damage_is_named_and_made_again(tmp_path, caplog):
    """Every third byte of a part, flipped; and the part cut at every sixteenth."""
    measured(tmp_path)
    file = part(tmp_path, 1)
    data = file.read_bytes()
    damages = [data[:at] + bytes([data[at] ^ (1 << at % 8)]) + data[at + 1 :] for at in range(0, len(data), 3)]
    damages += [data[:at] for at in range(0, len(data), 16)] + [data + b"\0"]
    for damaged in damages:
        file.write_bytes(damaged)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert measured(tmp_path)[1] == 8
        assert f"{file} is damaged" in caplog.text
        assert "its 8 texts are tokenised again" in caplog.text
        assert file.read_bytes() == data
    assert len(damages) > 100
    caplog.clear()
    assert measured(tmp_path)[1] == 0
    assert not caplog.text


def test_parts_cannot_change_places(tmp_path, caplog):
    measured(tmp_path)
    measured(tmp_path, "other")
    one, other = part(tmp_path, 0), part(tmp_path, 1)
    content = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(content)
    theirs = next(file for file in tmp_path.glob("*/00002.tokens") if file.parent != one.parent)
    (one.parent / "00002.tokens").write_bytes(theirs.read_bytes())
    assert sum(measured(tmp_path, name)[1] for name in ("words", "other")) == 24
    assert caplog.text.count("does not match its checksum") == 3


def test_a_part_that_is_lost_later_is_made_again_in_memory(tmp_path):
    corpus, _ = measured(tmp_path)
    corpus.token_ids._parts.clear()
    part(tmp_path, 2).unlink()
    assert corpus.token_ids.take(np.arange(30)) == IDS


def test_what_a_tokenizer_gives_is_checked(tmp_path):
    for given, said in ((lambda texts: [[1]], "1 lists of ids for the 8"), (lambda texts: [[]] * 8, "length 0")):
        with pytest.raises(ValueError, match=said.replace("the ", "(the )?")):
            CorpusTexts(TEXTS, token_counts=CorpusTokenizer(given, "x", tmp_path)).measured(Replicas())
    with pytest.raises(ValueError, match="Document 9 is empty"):
        measured(tmp_path, texts=[*TEXTS[:9], " ", *TEXTS[10:]])


class Together(Replicas):
    """Process `rank` of three; what the others would have said comes from running them one after the other."""

    size = 3

    def __init__(self, rank, own_disk=False):
        self.rank, self.writes, self.said = rank, rank == 0 or own_disk, []

    def gather(self, arrays):
        if "missing" in arrays:
            return [dict(arrays)] * 3
        self.said.append(dict(arrays))
        return [self.others(other, arrays) for other in range(3)]

    def others(self, other, arrays):
        if other == self.rank or "bytes" not in arrays:
            return dict(arrays)
        round_ = sum("bytes" in one for one in self.said) - 1
        number = 3 * round_ + other
        store = token_ids.TokenIds(self.folder, 30, lambda rows: IDS[rows.start : rows.stop])
        made = store._made([number] if number < 4 else [])
        return made | {"failed": np.array(False)}


def test_each_process_tokenises_its_share(tmp_path):
    measured(tmp_path / "one")
    wanted = {file.name: file.read_bytes() for file in tmp_path.glob("one/*/*")}
    folder = next((tmp_path / "one").iterdir()).name
    asked = []
    for rank in range(3):
        place = tmp_path / str(rank)
        replicas = Together(rank)
        replicas.folder = place / folder
        tokenizer = Tokenizer()
        corpus = CorpusTexts(TEXTS, token_counts=CorpusTokenizer(tokenizer, "words", place))
        corpus.measured(replicas)
        asked.append(len(tokenizer.asked))
        made = {file.name: file.read_bytes() for file in place.glob("*/*")}
        assert made == (wanted if rank == 0 else {}), "the writing process writes what all of them made"
    # Parts of 8, 8, 8 and 6 texts; processes that write nothing here make the others again when they count.
    assert asked == [8 + 6, 30 + 8, 30 + 8]


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    def full(path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(token_ids, "written_file", full)
    with pytest.raises(OSError, match=r"[\d,]+ bytes needed, [\d,]+ bytes free") as failed:
        measured(tmp_path)
    assert failed.value.filename.endswith("00000.tokens")


def test_the_header_is_as_documented(tmp_path):
    measured(tmp_path)
    data = part(tmp_path, 3).read_bytes()
    magic, _, number, texts, ids, _ = struct.unpack("<8s16sIIQ16s", data[:56])
    assert (magic, number, texts, ids) == (b"R3TOKEN1", 3, 6, sum(map(len, IDS[24:])))
    assert np.frombuffer(data[56 : 56 + 56], np.int64).tolist() == np.cumsum([0, *map(len, IDS[24:])]).tolist()


class Fed(Encoder):
    """An encoder that is given token ids and no other way to know the document."""

    def __call__(self, texts, token_ids):
        self.texts += texts
        return self.vectors([ids[-1] for ids in token_ids])


def test_builds_refreshes_audits_and_rebuilds_are_fed_the_ids(tmp_path):
    texts = [f"document number {row}" for row in range(30)]
    asked = []

    def tokenize(batch):
        asked.extend(batch)
        return [[7, int(text.split()[-1])] for text in batch]

    def corpus():
        return CorpusTexts(texts, token_counts=CorpusTokenizer(tokenize, "numbers", tmp_path / "tokens"))

    settings = CorpusCacheSettings(neighbors=3, encode_rows=7)
    cache = CorpusCache.build(corpus(), Fed(), folder=tmp_path / "cache", settings=settings)
    plain = CorpusCache.build(texts, Encoder(), folder=tmp_path / "plain", settings=settings)
    for one, kind in ((cache, Fed), (plain, Encoder)):
        hits = Hits(one.values(np.arange(2)), np.arange(6).reshape(2, 3), [[0], [1]])
        one.refresh(hits, kind(1), 10, step=1)
        one.audit(10, kind(1))
        one.rebuild(kind(2), step=2)
    assert np.array_equal(cache.vectors, plain.vectors)
    assert len(asked) == 30
    cache.save(fingerprint="later")
    loaded = CorpusCache.load(tmp_path / "cache", corpus(), fingerprint="later", dim=DIM)
    loaded.rebuild(Fed(3), step=3)
    assert len(asked) == 30, "a second run tokenises nothing"


def test_counts_without_ids_are_taken_once(tmp_path):
    counted = []

    def count(batch):
        counted.extend(batch)
        return [len(text.split()) for text in batch]

    corpus = CorpusTexts([f"document number {row}" for row in range(30)], token_counts=count)
    cache = CorpusCache.build(corpus, Encoder(), folder=tmp_path, settings=CorpusCacheSettings(neighbors=3))
    for step in (1, 2):
        cache.rebuild(Encoder(step), step=step)
    assert len(counted) == 30
    assert CorpusCache.load(tmp_path, corpus, fingerprint="", dim=DIM).step == 2
    assert len(counted) == 30
