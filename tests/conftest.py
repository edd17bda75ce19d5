"""Which test files a core installation (`make test-core`) leaves out: those that need a package of the `test` extra."""

from importlib.util import find_spec

NEEDS = {"kernels/test_export.py": "sklearn", "kernels/test_gguf.py": "gguf", "kernels/test_main.py": "gguf",
         "server/test_openapi.py": "jsonschema", "tracing/test_seccomp_export.py": "jsonschema"}
collect_ignore = [file for file, package in NEEDS.items() if find_spec(package) is None]
