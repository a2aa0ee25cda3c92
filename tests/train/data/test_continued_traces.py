"""Hopworld rows that start inside their trace: what is given is read, what follows is learned."""

from train.config.data import SourceSettings
from train.data.sources import open_source


def sentences(text):
    return [f"{part}." for part in text.rstrip(".").split(". ")] if text else []


def test_given_ends_where_the_rest_begins():
    plain = open_source(SourceSettings(kind="hopworld", documents=500))
    continued = open_source(SourceSettings(kind="hopworld", documents=500, continued=1.0))
    counts = set()
    for position in range(0, continued.count, 7):
        whole = sentences(plain.parse(plain.at(position), 0).reasoning)
        row = continued.parse(continued.at(position), 0)
        if len(whole) == 1:  # a single fact is learned whole: nothing else teaches it
            assert row.given is None
            continue
        given, rest = sentences(row.given), sentences(row.reasoning)
        assert given
        last = whole.index(given[-1])
        assert rest == whole[last + 1 :]
        assert set(given) <= set(whole[: last + 1])
        counts.add((len(whole), len(given)))
    # How many sentences were said no longer tells whether another one follows.
    assert {(2, 1), (2, 2), (2, 3)} <= counts


def test_off_by_default_and_another_draw_in_every_epoch():
    source = open_source(SourceSettings(kind="hopworld", documents=500))
    assert all(source.parse(source.at(i), 0).given is None for i in range(0, source.count, 50))
    source = open_source(SourceSettings(kind="hopworld", documents=500, continued=0.5))
    places = [i for i in range(0, source.count, 20) if source.at(i)["hops"] == 2]
    first, second = ([source.parse(source.at(i), epoch).given for i in places] for epoch in (0, 1))
    assert first != second
    assert 0.35 < sum(given is not None for given in first) / len(first) < 0.65


def test_given_is_outside_of_what_is_learned(tiny_tokenizer):
    from search_r3_mteb.encoder.profiles import Profile
    from search_r3_mteb.encoder.prompts import Renderer

    renderer = Renderer(tiny_tokenizer, Profile.default(), 900)
    whole = renderer.render_reply("q", "reason", "one. two.")
    split = renderer.render_reply("q", "reason", "two.", given="one.")
    start, end = split.spans["assistant"]
    assert tiny_tokenizer.decode(split.token_ids) == tiny_tokenizer.decode(whole.token_ids)
    assert tiny_tokenizer.decode(split.token_ids[start:end]) == " two.<|embed_token|>"
    assert split.spans["embed"] == (end - 1, end)
