"""Which test files a core installation (`make test-core`) leaves out: those that need a package of the `test` extra."""

from importlib.util import find_spec

NEEDS = {
    "kernels/test_export.py": "sklearn", "kernels/test_gguf.py": "gguf", "kernels/test_lightgbm_text.py": "lightgbm",
    "kernels/test_main.py": "gguf", "kernels/test_onnx_backend.py": "onnx", "kernels/test_onnx_graph.py": "onnx",
    "kernels/test_onnx_ml_ops.py": "onnxruntime", "kernels/test_onnxruntime_engine.py": "onnxruntime",
    "kernels/test_verify.py": "lightgbm", "kernels/test_xgboost_json.py": "xgboost",
    "server/test_openapi.py": "jsonschema", "tracing/test_seccomp_export.py": "jsonschema",
}
collect_ignore = [file for file, package in NEEDS.items() if find_spec(package) is None]
