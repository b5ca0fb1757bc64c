"""Where does CoLA come from, and is it the published corpus?"""

import hashlib
import http.client
import io
import lzma
import urllib.request
import zipfile
import zlib
from pathlib import Path

from tqdm import tqdm

from support.errors import UserError
from support.files import read_bytes, write_bytes

COLA_DIR = Path(__file__).resolve().parent.parent / "cola_public"
COLA_URL = "https://nyu-mll.github.io/CoLA/cola_public_1.1.zip"
COLA_SHA256 = {
    "in_domain_train": "f320a10f92d3bce6b29152fde322a362eac39238e50d8de0c8815457fdf4fc12",
    "in_domain_dev": "77176f6a03faa5a1c4f23c69971fc1bff565931112fb65af47b2d6e24b7f42f7",
    "out_of_domain_dev": "201b9c57b2a20f1282242eec0ed8995729e3be19c29a46c047b3727338836c05",
}
LIMIT = 1 << 26  # bytes of a download or of a file in it; CoLA's archive has 0.25 MB
NOT_AN_ARCHIVE = (
    zipfile.BadZipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    KeyError,
    ValueError,
    RuntimeError,
    OSError,
)  # fmt: skip  what zipfile raises for bytes of no or of a broken archive


def find_corpus(data_dir: Path) -> Path:
    """Return a corpus' folder, having fetched and checked it if it is the project's own of CoLA."""
    if data_dir.resolve() == COLA_DIR:
        paths = {split: COLA_DIR / "raw" / f"{split}.tsv" for split in COLA_SHA256}
        if not all(path.exists() for path in paths.values()):
            fetch_cola(COLA_DIR)
        for split, path in paths.items():
            if hashlib.sha256(read_bytes(path)).hexdigest() != COLA_SHA256[split]:
                raise UserError(f"{path}: not the published file; delete it and run again")
    elif not data_dir.is_dir():
        names = ", ".join(f"raw/{split}.tsv" for split in COLA_SHA256)
        raise UserError(f"--data_dir {data_dir}: no such folder; it must hold {names}")
    return data_dir


def fetch_cola(folder: Path, url: str = COLA_URL, sha256: dict[str, str] = COLA_SHA256) -> None:
    """Download CoLA's archive and put its three raw files into ``folder/raw``, beside others.

    Only the three named members are read, and nothing is written unless all have their checksum.
    """
    remedy = f"download {url} yourself, unpack it and pass the folder as --data_dir"
    try:
        content = download(url)
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise UserError(f"{url}: cannot be downloaded ({reason}); {remedy}") from None
    files = {}
    try:
        archive = zipfile.ZipFile(io.BytesIO(content))
        for split in sha256:
            with archive.open(f"cola_public/raw/{split}.tsv") as member:
                files[split] = member.read(LIMIT)
    except NOT_AN_ARCHIVE as error:
        raise UserError(f"{url}: not CoLA's archive ({error!r}); {remedy}") from None
    for split, content in files.items():
        if hashlib.sha256(content).hexdigest() != sha256[split]:
            raise UserError(f"{url}: {split}.tsv has the wrong checksum; {remedy}")
    for split, content in files.items():
        write_bytes(folder / "raw" / f"{split}.tsv", content)


def download(url: str) -> bytes:
    """The content of an address, under a progress bar."""
    with urllib.request.urlopen(url, timeout=20) as response:
        size = int(response.headers.get("Content-Length", 0))
        content = bytearray()
        with tqdm(desc="CoLA", total=size or None, unit="B", unit_scale=True, disable=None) as bar:
            while chunk := response.read(1 << 16):
                content += chunk
                bar.update(len(chunk))
                if len(content) > LIMIT:
                    raise OSError(f"more than {LIMIT >> 20} MiB came")
    if len(content) < size:
        raise OSError(f"cut off after {len(content)} of {size} bytes")
    return bytes(content)
