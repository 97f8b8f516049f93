"""The embedding model that recipes share, with its vectors in the user's cache."""

from transfuse.io.bundled import cache_folder
from transfuse.knowledge.embedding_cache import CachedEmbedder
from transfuse.knowledge.embeddings import load_embedder


def cached_embedder(reference: str, *, trust_remote_code: bool = False) -> CachedEmbedder:
    """An embedding model whose vectors are kept, so that no text is embedded twice by whatever run.

    Args:
        reference: a sentence-transformers folder, a Hub id or `minilm-l6-v2`.
        trust_remote_code: whether Python code that comes with the model may run.

    Returns:
        The embedder over the user's cache file.

    Raises:
        MissingExtraError: sentence-transformers, or the package with the bundled model, is not installed.
        ModelError: the reference leads to no embedding model that can be loaded.
        RunFolderError: the cache cannot be written.
    """
    model = load_embedder(reference, trust_remote_code=trust_remote_code)
    return CachedEmbedder(model, cache_folder() / "embeddings.sqlite")
