"""Configurations of both stages: one pydantic model per concept, shared by the TOML file and the functions."""
