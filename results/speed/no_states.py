"""A connector of vLLM that keeps nothing: what extracting hidden states costs before anything is done with them."""

from typing import Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1, KVConnectorMetadata, SupportsHMA


class NoStates(KVConnectorBase_V1, SupportsHMA):
    """The methods that vLLM calls, without any work."""

    def start_load_kv(self, *given: Any, **named: Any) -> None:
        """Nothing is loaded."""

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Nothing is loaded."""

    def wait_for_save(self) -> None:
        """Nothing is saved."""

    def save_kv_layer(self, *given: Any, **named: Any) -> None:
        """Nothing is saved."""

    def register_kv_caches(self, kv_caches: dict[str, Any]) -> None:
        """Nothing is read."""

    def get_num_new_matched_tokens(self, request: Any, num_computed_tokens: int) -> tuple[int, bool]:
        """No tokens from elsewhere."""
        return 0, False

    def update_state_after_alloc(self, *given: Any) -> None:
        """Nothing is followed."""

    def build_connector_meta(self, scheduler_output: Any) -> KVConnectorMetadata:
        """Nothing to tell."""
        return KVConnectorMetadata()

    def request_finished(self, request: Any, block_ids: list[int]) -> tuple[bool, None]:
        """Blocks are freed at once."""
        return False, None

    def request_finished_all_groups(self, request: Any, block_ids: Any) -> tuple[bool, None]:
        """Blocks are freed at once."""
        return False, None
