"""Colours and markers of the architectures: Okabe and Ito's colours, which colour-blind readers can distinguish."""

STYLES = {
    "resnet": {"color": "#000000", "marker": "X"},
    "mobilenet": {"color": "#E69F00", "marker": "^"},
    "linear_mix": {"color": "#56B4E9", "marker": "D"},
    "explicit_rd": {"color": "#D55E00", "marker": "s"},
    "implicit_rd": {"color": "#0072B2", "marker": "o"},
    "circulant_rd": {"color": "#009E73", "marker": "v"},
    "implicit_circulant_rd": {"color": "#CC79A7", "marker": "P"},
}
