"""What a classifier says of handwritten digits: real points of the simplex of ten categories, most near a vertex."""

from functools import cache

import torch
from torch import Tensor


@cache
def digit_probabilities() -> Tensor:
    """Softmax outputs of a logistic regression on scikit-learn's digits, each digit by a classifier that has not seen it (ten-fold
    cross-validation): float64 ``[1797, 10]``."""
    from sklearn.datasets import load_digits
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import cross_val_predict
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    images, labels = load_digits(return_X_y=True)
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.02, max_iter=400))
    p = torch.as_tensor(cross_val_predict(classifier, images, labels, cv=10, method="predict_proba"))
    return p / p.sum(-1, keepdim=True)


if __name__ == "__main__":
    p = digit_probabilities()
    print(
        f"{len(p)} points of the simplex of {p.shape[1]} categories; median of the largest entry {p.amax(-1).median():.3f}"
    )
