"""Which test files a core installation (`make test-core`) leaves out: those that need a package of the `test` extra."""

from importlib.util import find_spec

TRAINING = "sklearn lightgbm xgboost onnxruntime skl2onnx"
MLFLOW = f"{TRAINING} mlflow gguf pandas"
NEEDS = {
    "databricks": f"{MLFLOW} databricks.sdk deltalake pyarrow pyspark", "server/test_mlflow_models.py": MLFLOW,
    "server/test_scoring_differential.py": f"{MLFLOW} pyarrow uvicorn",
    "kernels/test_boosters.py": TRAINING, "kernels/test_explain.py": TRAINING,
    "kernels/test_export.py": "skl2onnx gguf", "kernels/test_main.py": "skl2onnx gguf",
    "kernels/test_fuzz_models.py": TRAINING, "kernels/test_gguf.py": "gguf",
    "kernels/test_lightgbm_text.py": "lightgbm", "kernels/test_onnx_backend.py": "onnx",
    "kernels/test_onnx_graph.py": "onnx", "kernels/test_onnx_lowering.py": TRAINING,
    "kernels/test_onnx_ml_ops.py": "onnxruntime", "kernels/test_onnxruntime_engine.py": TRAINING,
    "kernels/test_program_file.py": TRAINING, "kernels/test_sklearn_models.py": TRAINING,
    "kernels/test_sklearn_trees.py": TRAINING, "kernels/test_svm.py": TRAINING, "kernels/test_verify.py": TRAINING,
    "kernels/test_xgboost_json.py": "xgboost", "server/test_explain_api.py": TRAINING,
    "server/test_openapi.py": "jsonschema", "tracing/test_seccomp_export.py": "jsonschema",
}
collect_ignore = [file for file, packages in NEEDS.items() if not all(map(find_spec, packages.split()))]
