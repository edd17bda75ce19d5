"""Small model files as LightGBM and XGBoost write them: strings for categories, missing values, several outputs."""

from pathlib import Path

import numpy as np

N_ROWS = 600


def write_all(folder: Path) -> list[Path]:
    """One file of each kind; needs lightgbm, xgboost and pandas."""
    return [*_lightgbm(folder), *_xgboost(folder)]


def shop_frame(n_rows: int = N_ROWS):
    """(a DataFrame with numbers, categories and missing values, and what it says): always the same."""
    import pandas
    rng = np.random.default_rng(0)
    frame = pandas.DataFrame({
        "amount": rng.lognormal(3, 1, n_rows),
        "colour": pandas.Categorical(rng.choice(["red", "grün", "blue"], n_rows)),
        "hour": rng.integers(0, 24, n_rows).astype(float),
        "country": pandas.Categorical(rng.choice(["DE", "FR", "ES", "IT"], n_rows))})
    frame.loc[rng.random(n_rows) < 0.1, "hour"] = np.nan
    return frame, ((frame.amount > 20) ^ (frame.colour == "red")).astype(int)


def _lightgbm(folder: Path) -> list[Path]:
    import lightgbm
    rng, usual = np.random.default_rng(1), {"verbose": -1, "num_threads": 1, "min_data_per_group": 5, "num_leaves": 7}
    frame, said = shop_frame()
    numbers = rng.normal(size=(N_ROWS, 3))
    kinds = {
        "shop": (frame, said, {"objective": "binary"}),
        "three": (numbers, np.arange(N_ROWS) % 3, {"objective": "multiclass", "num_class": 3}),
        "price": (numbers, numbers.sum(axis=1), {"objective": "regression"}),
    }
    for name, (rows, target, objective) in kinds.items():
        booster = lightgbm.train(usual | objective, lightgbm.Dataset(rows, target), 8)
        booster.save_model(folder / f"{name}.txt")
    return [folder / f"{name}.txt" for name in kinds]


def _xgboost(folder: Path) -> list[Path]:
    import xgboost
    rng = np.random.default_rng(2)
    numbers = np.where(rng.random((N_ROWS, 40)) < 0.1, np.nan, rng.normal(size=(N_ROWS, 40)))
    target = (np.nan_to_num(numbers).sum(axis=1) > 0).astype(int)
    matrix = xgboost.DMatrix(numbers, target, feature_names=[f"feature {i}" for i in range(40)])
    booster = xgboost.train({"objective": "binary:logistic", "max_depth": 3, "nthread": 1}, matrix, 8)
    for name in ("forty.json", "forty-binary.ubj"):
        booster.save_model(folder / name)
    return [folder / "forty.json", folder / "forty-binary.ubj"]
