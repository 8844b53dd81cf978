"""What a person looks at: static HTML, figures and live widgets, from plain lists, arrays and frames."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "analysis_figures": ["pair_scatter", "share_grid", "version_lines"],
        "browser": ["FeatureBrowser", "browser_view"],
        "channels": ["ChannelMap", "channel_map"],
        "cards": ["FeatureCard", "card_view"],
        "curves": ["LiveCurve", "curve_figure", "frontier", "report_html"],
        "dial": ["SparsityDial", "sparsity_dial"],
        "diff": ["diff_html", "diff_page", "forest", "scatter_freq"],
        "diff_view": ["DiffView", "diff_view"],
        "export": ["export_html", "save_html"],
        "html": ["page", "snippets"],
        "masks": ["Mark", "MaskView", "mask_view"],
        "maps": ["ConceptMap", "map_view"],
        "scores": ["score_bars", "score_histogram"],
        "networks": ["CorrelationNetwork", "network_view"],
        "panel": ["InterventionPanel", "Knob", "panel_view"],
        "reasoning": ["ReasoningTimeline", "timeline_view"],
        "reasoning_figures": ["interval_dots"],
        "run_tables": ["RunTable", "run_table"],
        "pattern_figures": ["likeness_grid", "tile_gallery"],
        "selection": ["Selection"],
        "sparsity_figures": ["allocation_bars", "landscape", "rho_grid", "score_scatter"],
        "tokens": ["TokenView", "token_view"],
        "widgets": ["TokenWidget"],
    },
)
