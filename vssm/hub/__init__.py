"""Trained classifiers on the Hugging Face Hub: a folder that timm loads, its model card, the upload.

from vssm.hub import describe_run, push_folder, write_folder

card = describe_run("runs/pets", "owner/pets", license="cc-by-4.0", dataset="Oxford-IIIT Pet, its trainval split")
push_folder(write_folder("runs/pets", "pets-hub", card), "owner/pets")
"""

from vssm.hub.card import Card
from vssm.hub.errors import HubError
from vssm.hub.folder import check_folder, write_folder
from vssm.hub.push import check_login, push_folder
from vssm.hub.run import describe_run

__all__ = ["Card", "HubError", "check_folder", "check_login", "describe_run", "push_folder", "write_folder"]
