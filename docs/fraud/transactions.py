"""Made-up card transactions with 0.5 % frauds: `python transactions.py N OUT.parquet [SEED]`.

Raw columns as a payment system has them: amounts, times, places as strings, and missing values. Frauds follow from
several columns together (a large amount at night from a new device abroad, rapid small ones, …) and from chance.
"""

import sys

import numpy as np
import pandas as pd

MERCHANTS = ["grocery", "fuel", "travel", "electronics", "gambling", "restaurant", "subscription"]
COUNTRIES = ["ES", "FR", "DE", "PT", "IT", "GB", "US", "BR", "NG", "RO"]
CHANNELS = ["chip", "contactless", "online", "phone"]
POSITIVES = 0.005


def transactions(n: int, seed: int = 0) -> pd.DataFrame:
    """n transactions; the column `fraud` says "fraud" or "ok"."""
    random = np.random.default_rng(seed)
    frame = pd.DataFrame({
        "amount": random.lognormal(3.2, 1.1, n).round(2),
        "hour": random.integers(0, 24, n).astype(float),
        "merchant": random.choice(MERCHANTS, n, p=[.3, .15, .08, .1, .02, .2, .15]),
        "country": random.choice(COUNTRIES, n, p=[.6, .08, .08, .06, .05, .04, .04, .02, .01, .02]),
        "channel": random.choice(CHANNELS, n, p=[.35, .3, .3, .05]),
        "card_age_days": random.exponential(700, n).round(),
        "device_age_days": random.exponential(200, n).round(),
        "distance_km": random.lognormal(1.5, 1.6, n).round(1),
        "spent_last_hour": random.lognormal(1.0, 1.5, n).round(2),
        "tries_last_hour": random.poisson(0.3, n).astype(float),
        "customer_age": random.normal(45, 15, n).clip(18, 95).round(),
    })
    night = (frame.hour < 6).astype(float)
    score = (1.1 * np.log1p(frame.amount) - 3.5 + 1.2 * night + 1.5 * (frame.channel == "online")
             + 2.0 * (frame.merchant == "gambling") + 1.2 * (frame.merchant == "electronics")
             + 1.8 * frame.country.isin(["NG", "RO", "BR"]) + 0.9 * frame.tries_last_hour
             - 0.8 * np.log1p(frame.device_age_days) + 0.4 * np.log1p(frame.distance_km)
             + 1.5 * night * (frame.distance_km > 50) + random.logistic(0, 0.6, n))
    frame["fraud"] = np.where(score >= np.quantile(score, 1 - POSITIVES), "fraud", "ok")
    for column, share in [("device_age_days", 0.15), ("distance_km", 0.1), ("customer_age", 0.05), ("merchant", 0.03)]:
        frame.loc[random.random(n) < share, column] = None
    return frame


if __name__ == "__main__":
    rows, out, *seed = sys.argv[1:]
    transactions(int(rows), *map(int, seed)).to_parquet(out)
