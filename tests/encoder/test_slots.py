"""The cache layers of decoding, as every transformers release that is allowed asks for them."""

import pytest

from search_r3_mteb.encoder.slots import PrefixLayer, SlotLayer, Window


@pytest.mark.parametrize("name", ["get_max_length", "get_max_cache_shape"])  # from transformers 5.13 on, and before
def test_the_size_of_a_layer_has_both_names(name):
    assert getattr(SlotLayer(Window(places=2, columns=7)), name)() == 7
    assert getattr(PrefixLayer(), name)() == -1
