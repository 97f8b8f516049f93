"""The table of models that can be loaded by name."""

from rich.table import Table

from transfuse.io.listing import ModelListing, list_models


def models_table() -> Table:
    """Bundled models and those in the local Hub cache, one a row."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("model", "parameters", "architecture", "tokenizer", "licence", "from"):
        table.add_column(column, overflow="fold")
    for listing in list_models():
        table.add_row(
            listing.reference if listing.is_fetched else f"{listing.reference} (not fetched)",
            _millions(listing),
            listing.architecture,
            listing.tokenizer,
            listing.licence,
            f"{listing.origin}: {listing.comes_from}",
        )
    table.caption = "Also: any Hub id, a local model folder, or a .gguf file."
    table.caption_justify = "left"
    return table


def _millions(listing: ModelListing) -> str:
    return f"{listing.n_parameters / 1e6:,.0f} M" if listing.n_parameters else "unknown"
