"""The colours of the book, one meaning each. Plain strings, no plotting library needed.

Chosen to stay apart for colour-blind readers and, with labels and line styles, in grey print.
"""

BASE = "#868e96"  # base model
ALIGNED = "#0b9c8f"  # aligned model
PROXY = "#7a4fd0"  # proxy reward: what is optimised
GOLD = "#d98a00"  # gold reward: what is meant
HELD_OUT = "#2e7dd7"  # held-out reward
EXACT = "#000000"  # exact optimum, ground truth: drawn thin

ROLES = {"base": BASE, "aligned": ALIGNED, "proxy": PROXY, "gold": GOLD, "held-out": HELD_OUT, "exact": EXACT}

FAMILIES = {
    "reward_weighted": "#b4561a",
    "policy_gradient": "#2f62ad",
    "reward_gradient": "#8a3ea8",
    "preference": "#c22f5e",
    "test_time": "#3c7f2c",
}

NIGHT = {  # the same on dark pages
    BASE: "#a3abb3", ALIGNED: "#35c9ba", PROXY: "#ac8cf0", GOLD: "#f0b13c", HELD_OUT: "#6aa9f0", EXACT: "#ffffff",
    FAMILIES["reward_weighted"]: "#e8894c",
    FAMILIES["policy_gradient"]: "#7ea6ea",
    FAMILIES["reward_gradient"]: "#cb8de4",
    FAMILIES["preference"]: "#f07a9f",
    FAMILIES["test_time"]: "#80c66c",
}


def role(name: str) -> str:
    """The colour of a role ("base", "aligned", "proxy", "gold", "held-out", "exact"), or a colour passed through.

    Raises ValueError for a name that is neither a role nor looks like a colour (#rgb, #rrggbb).
    """
    if name in ROLES:
        return ROLES[name]
    if name in FAMILIES:
        return FAMILIES[name]
    if name.startswith("#"):
        return name
    raise ValueError(f"no role is called {name!r}; roles: {', '.join(ROLES)}; families: {', '.join(FAMILIES)}")


def on_page(name: str) -> str:
    """A role, a family or a colour for a style in HTML: variables for the first two, others lighter on dark pages.

    Raises ValueError as `role` does.
    """
    colour = role(name)
    known = next((known for known, hue in (ROLES | FAMILIES).items() if hue == colour), None)
    return f"var(--sv-{known})" if known else f"color-mix(in srgb,{colour} var(--sv-keep),#fff)"
