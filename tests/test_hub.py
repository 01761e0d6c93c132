"""Uploads, with the Hub replaced."""

import pytest

from diffusers_ucgm.hub import push_folder_to_hub


def test_uploads_make_the_repository_and_one_commit(tmp_path, monkeypatch):
    calls = []

    class Api:
        def __init__(self, token=None):
            calls.append(("token", token))

        def create_repo(self, repo_id, private=None, exist_ok=False):
            calls.append(("create", repo_id, private, exist_ok))

        def upload_folder(self, repo_id, folder_path, commit_message, ignore_patterns):
            calls.append(("upload", repo_id, folder_path, commit_message))
            return "https://hub/owner/name"

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    with pytest.raises(ValueError, match="`folder` must hold safetensors files"):
        push_folder_to_hub(tmp_path, "owner/name")
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert push_folder_to_hub(tmp_path, "owner/name", private=True, commit_message="m") == "https://hub/owner/name"
    assert calls == [("token", None), ("create", "owner/name", True, True), ("upload", "owner/name", tmp_path, "m")]
