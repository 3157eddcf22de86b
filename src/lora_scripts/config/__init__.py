"""One frozen schema: the YAML file, `--set`, docs/config.md and any form come from it.

Importing the package is cheap; `load` brings in pydantic and ruamel.yaml.
"""
