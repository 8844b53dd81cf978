"""Chains of thought, step by step: split them, read a model's states for each step, probe, vote, find patterns."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "arithmetic": ["check_arithmetic", "final_number"],
        "controller": ["SparsityController"],
        "patterns": ["PatternScores", "Patterns", "n2g"],
        "labels": ["reconstruction_labels"],
        "localisation": ["ErrorsFound", "first_errors"],
        "probing": ["StepProbes", "probe_steps"],
        "problems": ["planted_chains"],
        "scores": ["Score", "auroc", "calibration_error", "grouped_split"],
        "ssae": ["StepSAE"],
        "ssae_start": ["start_from_words"],
        "ssae_write": ["StepSwap", "swap_steps"],
        "states": ["StepStates", "step_states"],
        "step_data": ["StepBatch", "StepDataset"],
        "step_latents": ["StepLatents"],
        "step_probe": ["StepProbe"],
        "steps": ["Step", "Steps", "split_steps"],
        "voting": ["Vote", "Votes", "compare_votes", "probe_vote"],
        "surprise": ["step_surprise"],
        "timelines": ["step_timeline"],
        "traces": ["Trace", "Traces", "read_traces"],
        "watch": ["Watched", "watch_steps"],
    },
)
