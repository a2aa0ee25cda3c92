"""The released Search-R3 checkpoints in MTEB's model registry."""


def register_models() -> None:
    """Make `mteb.get_model("ytgui/Search-R3.0-Small")` and `-Large` work in this process.

    MTEB has no plug-in mechanism; its registry is a dictionary. Entries that MTEB itself brings one day are left alone.
    """
    from mteb.models.model_implementations import MODEL_REGISTRY

    from search_r3_mteb.integrations.mteb_models import SEARCH_R3_MODELS

    for meta in SEARCH_R3_MODELS:
        MODEL_REGISTRY.setdefault(meta.name, meta)
