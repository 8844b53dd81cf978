"""The models behind `StepProbe`: linear ones with the penalty chosen on held-out folds, and a small MLP."""

from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # inverse penalties on standardised columns
_EPOCHS, _PATIENCE, _BATCH = 60, 6, 128
_UNSEEN = 1e-3  # probability kept for classes that a fold has not seen
Held = tuple[np.ndarray, np.ndarray]


class Fit(Protocol):
    """A model of rows."""

    def fit(self, x: Any, y: np.ndarray, folds: list[np.ndarray]) -> Held:
        """Fit on rows; returns some rows, and what a model says of them that was not fitted on them."""
        ...

    def predict(self, x: Any) -> np.ndarray:
        """Log-odds `[rows]` (binary), numbers `[rows]` or probabilities `[rows, classes]`."""
        ...

class Scale:
    """Columns to unit variance; dense ones are centred too. A constant column becomes 0."""

    def fit(self, x: Any) -> "Scale":
        dense = not hasattr(x, "tocsr")
        squares = x * x if dense else x.multiply(x)
        mean = np.asarray(x.mean(axis=0), dtype=np.float64).ravel()
        spread = np.sqrt(np.maximum(np.asarray(squares.mean(axis=0), dtype=np.float64).ravel() - mean**2, 0))
        used = spread > 1e-6 * np.abs(mean)
        self.factor = np.divide(1, spread, out=np.zeros_like(spread), where=used & (spread > 0)).astype(np.float32)
        self.mean = mean.astype(np.float32) if dense else None
        return self

    def __call__(self, x: Any) -> Any:
        sparse = hasattr(x, "tocsr")
        if self.mean is None:  # fitted on sparse rows; dense ones of the same kind may come later, and the reverse
            from scipy.sparse import csr_matrix

            return (x if sparse else csr_matrix(x)).multiply(self.factor).tocsr()
        return ((x.toarray() if sparse else x) - self.mean) * self.factor


class LinearFit:
    """Logistic or ridge regression.

    Args:
        target: "binary", "number" or "class".
    """

    def __init__(self, target: str):
        self.target = target

    def fit(self, x: Any, y: np.ndarray, folds: list[np.ndarray]) -> Held:
        """Choose the penalty by the loss on held-out folds, then fit on all rows."""
        self.scale, self.n_classes = Scale().fit(x), int(y.max()) + 1
        scaled = self.scale(x)
        best, kept = np.inf, np.zeros(len(y))
        for strength in STRENGTHS:
            held, models = self._held(scaled, y, folds, strength)
            loss = self._loss(y, held)
            if loss < best:
                best, kept, self.strength, self.parts = loss, held, strength, models
        self.model = self._model(scaled, y, self.strength)
        return np.arange(len(y)), kept

    def _held(self, x: Any, y: np.ndarray, folds: list[np.ndarray], strength: float) -> tuple[np.ndarray, list]:
        """What is said of each fold by a model of the others, and these models."""
        out, models = np.zeros((len(y), self.n_classes) if self.target == "class" else len(y)), []
        for fold in folds:
            rest = np.setdiff1d(np.arange(len(y)), fold)
            model = self._model(x[rest], y[rest], strength)
            models.append(model)
            out[fold] = self._say(model, x[fold])
        return out, models

    def _model(self, x: Any, y: np.ndarray, strength: float) -> Any:
        from sklearn.linear_model import LogisticRegression, Ridge

        if self.target == "number":
            return Ridge(alpha=1 / strength).fit(x, y)
        if len(np.unique(y)) < 2:  # a fold without one of the classes
            return _Constant(y)
        return LogisticRegression(C=strength, max_iter=1000, tol=1e-3).fit(x, y)

    def _say(self, model: Any, x: Any) -> np.ndarray:
        if self.target == "number":
            return model.predict(x)
        if self.target == "binary":
            return model.decision_function(x)
        out = np.full((x.shape[0], self.n_classes), _UNSEEN / self.n_classes)
        out[:, model.classes_.astype(int)] += (1 - _UNSEEN) * model.predict_proba(x)
        return out

    def _loss(self, y: np.ndarray, held: np.ndarray) -> float:
        if self.target == "number":
            return float(((y - held) ** 2).mean())
        if self.target == "class":
            return float(-np.log(held[np.arange(len(y)), y.astype(int)]).mean())
        return float(np.logaddexp(0, np.where(y > 0.5, -held, held)).mean())

    def predict(self, x: Any) -> np.ndarray:
        """Log-odds, numbers or probabilities."""
        return self._say(self.model, self.scale(x))

    def spread(self, x: Any) -> np.ndarray:
        """What the models of two thirds of the problems say, `[models, rows]` (not for classes)."""
        scaled = self.scale(x)
        return np.stack([self._say(model, scaled) for model in self.parts])

    def coefficients(self) -> np.ndarray:
        """Weights in units of the input."""
        weights = np.asarray(self.model.coef_) * self.scale.factor
        return weights[0] if weights.ndim == 2 and self.target == "binary" else weights


class _Constant:
    """A model that has seen one class only."""

    def __init__(self, y: np.ndarray):
        self.classes_ = np.unique(y)

    def decision_function(self, x: Any) -> np.ndarray:
        return np.full(x.shape[0], 4.0 if self.classes_[0] else -4.0)

    def predict_proba(self, x: Any) -> np.ndarray:
        return np.ones((x.shape[0], 1))


class MLPFit:
    """Linear layers with LayerNorm, ReLU and dropout 0.1, as in the paper; stopped early on one held-out fold.

    Args:
        target: "binary", "number" or "class".
        hidden: widths of the layers between.
        seed: of weights and batches; the global generator is left alone.
    """

    def __init__(self, target: str, hidden: tuple[int, ...], seed: int):
        self.target, self.hidden, self.seed = target, hidden, seed

    def fit(self, x: Any, y: np.ndarray, folds: list[np.ndarray]) -> Held:
        """Train on all folds but the first, which says when to stop."""
        self.scale = Scale().fit(x)
        self.shift, self.unit = (float(y.mean()), float(y.std()) or 1.0) if self.target == "number" else (0.0, 1.0)
        scaled, target = self._dense(x), torch.as_tensor((y - self.shift) / self.unit, dtype=torch.float32)
        rows = torch.as_tensor(np.concatenate(folds[1:]))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.seed)
            self.net = self._layers(scaled.shape[1], int(y.max()) + 1 if self.target == "class" else 1)
            self._train(scaled, target, rows, torch.as_tensor(folds[0]))
        return folds[0], self.predict(x[folds[0]])

    def _layers(self, width: int, n_out: int) -> nn.Sequential:
        layers: list[nn.Module] = []
        for wide in self.hidden:
            layers += [nn.Linear(width, wide), nn.LayerNorm(wide), nn.ReLU(), nn.Dropout(0.1)]
            width = wide
        return nn.Sequential(*layers, nn.Linear(width, n_out))

    def _train(self, x: torch.Tensor, y: torch.Tensor, rows: torch.Tensor, held: torch.Tensor) -> None:
        optimiser = torch.optim.AdamW(self.net.parameters(), lr=1e-3, weight_decay=0.01)
        best, kept, waited = float("inf"), self.net.state_dict(), 0
        for _ in range(_EPOCHS):
            self.net.train()
            for batch in rows[torch.randperm(len(rows))].split(_BATCH):
                optimiser.zero_grad()
                self._loss(self.net(x[batch]), y[batch]).backward()
                optimiser.step()
            self.net.eval()
            with torch.no_grad():
                loss = float(self._loss(self.net(x[held]), y[held]))
            if loss < best:
                best, waited = loss, 0
                kept = {name: value.clone() for name, value in self.net.state_dict().items()}
            else:
                waited += 1
                if waited == _PATIENCE:
                    break
        self.net.load_state_dict(kept)

    def _loss(self, said: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if self.target == "class":
            return nn.functional.cross_entropy(said, y.long())
        if self.target == "number":
            return nn.functional.mse_loss(said[:, 0], y)
        return nn.functional.binary_cross_entropy_with_logits(said[:, 0], y)

    def _dense(self, x: Any) -> torch.Tensor:
        scaled = self.scale(x)
        return torch.as_tensor(scaled.toarray() if hasattr(scaled, "toarray") else scaled, dtype=torch.float32)

    @torch.no_grad()
    def predict(self, x: Any) -> np.ndarray:
        """Log-odds, numbers or probabilities."""
        said = self.net(self._dense(x))
        if self.target == "class":
            return said.softmax(-1).double().numpy()
        return said[:, 0].double().numpy() * self.unit + self.shift
