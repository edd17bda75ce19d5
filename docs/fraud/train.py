"""Train a pipeline on raw transactions and save it as one native file.

`python train.py TRAIN.parquet TEST.parquet OUT.gguf`
"""

import sys

import lightgbm
import numpy as np
import pandas as pd
from sklearn.compose import ColumnTransformer
from sklearn.impute import SimpleImputer
from sklearn.metrics import average_precision_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder

import kernels

STRINGS = ["merchant", "country", "channel"]


def main(train_path: str, test_path: str, out: str) -> None:
    train, test = pd.read_parquet(train_path), pd.read_parquet(test_path)
    numbers = [column for column in train.columns if column not in [*STRINGS, "fraud"]]
    prepare = ColumnTransformer([
        ("numbers", "passthrough", numbers),
        ("strings", make_pipeline(SimpleImputer(strategy="constant", fill_value="unknown"),
                                  OneHotEncoder(handle_unknown="ignore")), STRINGS)])
    trees = lightgbm.LGBMClassifier(n_estimators=200, num_leaves=31, learning_rate=0.05, min_child_samples=40,
                                    random_state=0, n_jobs=2, verbose=-1)
    pipeline = Pipeline([("prepare", prepare), ("trees", trees)])
    X_train, X_test = train.drop(columns="fraud"), test.drop(columns="fraud")
    pipeline.fit(X_train, train["fraud"])

    kernels.save(kernels.from_sklearn(pipeline, name="fraud"), out)
    model = kernels.load(out)
    is_fraud = (test["fraud"] == "fraud").to_numpy()
    place = list(pipeline.classes_).index("fraud")
    theirs, ours = pipeline.predict_proba(X_test)[:, place], model.predict_proba(X_test)[:, place]
    print(f"{len(train):,} rows to train, {len(test):,} to test, {is_fraud.mean():.2%} frauds")
    print(f"PR-AUC {average_precision_score(is_fraud, ours):.4f} "
          f"(scikit-learn {average_precision_score(is_fraud, theirs):.4f}, by chance {is_fraud.mean():.4f})")
    print(f"largest difference of a probability: {np.abs(ours - theirs).max():.1e}")
    print(f"labels that differ: {int((model.predict(X_test) != pipeline.predict(X_test)).sum())}")


if __name__ == "__main__":
    main(*sys.argv[1:])
