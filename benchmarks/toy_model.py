"""Write a run of the toy preset as the model in the package, and its card: `make toymodel`.

Usage: python benchmarks/toy_model.py RUN OUT

The weights are stored as float16. Recalls are of these, on the test split of the corpus of the run.
"""

import sys
from pathlib import Path

import vgsplus
from vgsplus.config import load_config
from vgsplus.corpora import Corpus
from vgsplus.evaluation.embeddings import embed_split
from vgsplus.evaluation.retrieval import DIRECTIONS, rank_split, score
from vgsplus.interop import hub
from vgsplus.interop.loading import TOY
from vgsplus.training.run_folder import CONFIG_FILE

FURTHER = """
## How it was made

`make toymodel` in a checkout makes the corpus, the model and this card; no other data is used.

`vgsplus data toy` draws scenes of one to three of twelve shapes, each in one of eight colours, at
120 x 120 pixels, and describes each in five captions of about two seconds, which eSpeak NG speaks with
fourteen English voices: {captions:,} captions of {images:,} scenes for training. Each test scene shows a pair
of shape and colour that no training scene does. The model knows these drawings, voices and words alone,
neither photographs nor natural speech.

Recalls are among the {test_images} pictures and {test_captions} captions of the test split, in brackets their
95 % intervals by a bootstrap over pictures; chance is {chance_1:.1g} for R@1 and {chance_10:.1g} for R@10.
They are of the weights as they are here, in float16, which are read as float32.
"""


def main() -> None:
    """Measure the model of a run with weights rounded to float16, and save it."""
    run, out = map(Path, sys.argv[1:])
    corpus = Corpus.open(load_config(run / CONFIG_FILE).corpus)
    model = vgsplus.load(run).half().float()
    scores = score(rank_split(embed_split(model, corpus, "test")))
    model.about = about = hub.public_record(model.about)
    about["training"]["evaluation"] = {"updates": about["training"]["updates"]} | {
        f"test/{direction}/R@{k}": [share.value, share.low, share.high]
        for direction in DIRECTIONS
        for k, share in scores.direction(direction).recall.items()
    }
    (out / hub.CARD).unlink(missing_ok=True)
    model.half().save_pretrained(out, licence="mit", repo_id=TOY)
    train, chance = corpus.info["counts"]["train"], scores.speech_to_image.chance
    card = (out / hub.CARD).read_text().replace(f"'{hub.PREFIX}{TOY}'", f'"{TOY}"') + FURTHER.format(
        captions=train["captions"],
        images=train["images"],
        test_images=scores.images,
        test_captions=scores.captions,
        chance_1=chance[1],
        chance_10=chance[10],
    )
    (out / hub.CARD).write_text(card)
    print(card)


if __name__ == "__main__":
    main()
