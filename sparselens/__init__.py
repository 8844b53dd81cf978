"""sparselens: see, change and measure everything that is sparse in a live neural network."""

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submodules=[
        "activation", "attach", "attention", "costs", "datasets", "embeddings", "errors", "measure", "models",
        "reasoning", "sae", "views",
    ],
    submod_attrs={
        "activation": ["CATS", "RSparse", "RandomChannels", "TEAL", "WINA", "calibrate"],
        "attach": ["ablate", "edit", "replace", "steer"],
        "attention": [
            "ASA", "AdaSnapKV", "BlockSparse", "FlexPrefill", "KMeansRouting", "Quest", "RandomBlocks", "SinkWindow",
            "SnapKV", "SparseD", "TopKOracle", "VerticalSlash",
        ],
        "embeddings": [
            "ChatAPI", "KeywordJudge", "LocalJudge", "LocalLabeler", "SAEEmbedder", "SAEEmbedding", "cluster",
            "concept_map", "correlate", "diff", "embed", "feature_browser", "feature_card", "hypothesize",
            "label_features", "relabel_features", "retrieve", "select", "trend", "verify_hypotheses",
        ],
        "measure": ["compare", "fidelity", "intervention_panel", "runs", "sweep"],
        "models": ["DiffusionLM", "LiveModel", "load_diffusion", "load_model", "tiny_lm", "train_lm", "wrap"],
        "reasoning": [
            "SparsityController", "StepDataset", "StepProbe", "StepSAE", "Traces", "n2g", "planted_chains",
            "probe_steps", "probe_vote", "read_traces", "split_steps", "step_states", "step_timeline", "swap_steps",
            "watch_steps",
        ],
        "sae": [
            "AuxZipf", "BiasAdaptation", "FeatureChoice", "GaussianPrior", "GradTopK", "Latents", "MatchingPursuit",
            "Matryoshka", "Mixed", "PolyDecoder", "Resample", "SAE", "SparseLowRank", "Structured", "TopAFA",
            "alpha_sweep", "bidirectionality", "build_itda", "code_split", "concept_alignment", "contribution",
            "dialogue_activations", "drop_repeats", "encode_with", "estimate_training", "find_saes", "influence",
            "interactions", "load_transcoders", "pair_twins", "poles", "posterior_linearity", "probe_agreement",
            "pursuit_curve", "quasi_orthogonality", "recovery", "recovery_bench", "save_transcoders",
            "seed_consistency", "selection_churn", "selection_overlap", "special_token_report", "train_sae", "zf",
        ],
        "views": ["token_view"],
    },
)
