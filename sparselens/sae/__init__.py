"""Sparse dictionaries: one SAE class, its activations and decoders, training, file formats."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "abstopk": ["Bidirectionality", "Poles", "Twins", "bidirectionality", "pair_twins", "poles"],
        "activations": ["Activation", "FeatureChoice"],
        "decoders": ["Bypass", "Decoder"],
        "estimate": ["TrainingEstimate", "estimate_training"],
        "gba": ["BiasAdaptation", "Recovery", "SeedConsistency", "recovery", "seed_consistency"],
        "gradtopk": [
            "GradTopK",
            "Influence",
            "SelectionOverlap",
            "encode_with_gradients",
            "influence",
            "selection_overlap",
        ],
        "gradients": ["stream_gradients"],
        "loggers": ["CSVLogger", "TensorBoardLogger", "WandbLogger"],
        "itda": ["Match", "atom_table", "build_itda", "jaccard", "match_layers", "representation_similarity"],
        "mp": ["MatchingPursuit", "PursuitCurve", "encode_with", "pursuit_curve"],
        "mutual_choice": ["AuxZipf", "FeatureBudget", "fit_zipf"],
        "rules": ["Matryoshka", "MultiTopK", "Resample", "Rule"],
        "topafa": ["MatchNorm", "QuasiOrthogonality", "TopAFA", "ZF", "quasi_orthogonality", "zf"],
        "formats": ["load_transcoders", "save_transcoders"],
        "latents": ["Latents", "to_dense", "to_csr", "active_counts"],
        "norms": ["InputNorm", "TokenScale"],
        "registry": ["shipped"],
        "run": ["TrainingRun"],
        "sae": ["SAE"],
        "stats": ["ActiveSum", "FvuSum"],
        "store": ["ActivationStore", "harvest"],
        "train": ["train_sae"],
        "verify": ["Verification"],
        "vsae": ["GaussianPrior", "SelectionChurn", "selection_churn"],
    },
)
