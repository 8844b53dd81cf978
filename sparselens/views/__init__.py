"""What a person looks at: static HTML, figures and live widgets, from plain lists, arrays and frames."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "curves": ["LiveCurve", "curve_figure", "frontier", "report_html"],
        "diff": ["diff_html", "diff_page", "forest", "scatter_freq"],
        "export": ["export_html", "save_html"],
        "html": ["page", "snippets"],
        "tokens": ["TokenView", "token_view"],
        "widgets": ["TokenWidget"],
    },
)
