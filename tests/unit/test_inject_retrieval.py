"""The documents that a document run searches, and the models that it searches with."""

from transfuse.baselines.rag_settings import RagSettings
from transfuse.recipes.inject_retrieval import model_stamps, searched_documents
from transfuse.text.sections import screen_sections, split_sections
from transfuse.types import Document

TEXT = "# Isles\n\nGreen.\n\n## Trade\n\nTea,\nand eel.\n\n## History\n\nOld.\n"


def test_sections_that_are_left_out_are_blanked_and_all_offsets_stay():
    documents = [Document("isles.md", TEXT, "md"), Document("seas.txt", "Deep.", "txt")]
    sections = [section for document in documents for section in split_sections(document)[0]]
    kept, _ = screen_sections(sections, exclude=["Trade", "seas*"])
    kept = [section for section in kept if section.document == "isles.md"]
    (searched,) = searched_documents(documents, kept)
    assert searched.text == TEXT.replace("Tea,\nand eel.", "    \n        ")
    assert split_sections(searched)[0] == kept
    assert searched_documents(documents, sections) == documents


def test_a_search_model_in_a_folder_is_told_from_another_one_there(tmp_path):
    rag = RagSettings(embedder=str(tmp_path), reranker="owner/name")
    assert model_stamps(rag) == {}
    (tmp_path / "model.safetensors").write_bytes(b"one")
    first = model_stamps(rag)
    assert list(first) == [str(tmp_path / "model.safetensors")]
    (tmp_path / "model.safetensors").write_bytes(b"three")
    assert model_stamps(rag) != first
    assert model_stamps(RagSettings()) == {}
