"""HTTP for models: connections, wire protocols, the set of served models. `python -m server`."""
