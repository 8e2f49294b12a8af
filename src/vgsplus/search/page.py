"""The page of the search: what it shows, and what follows from a choice."""

import base64
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jinja2 import Environment, PackageLoader, StrictUndefined
from torch import Tensor

from vgsplus import audio
from vgsplus.corpora import Caption
from vgsplus.errors import VgsplusError
from vgsplus.evaluation.embeddings import MAX_SAMPLES, MAX_SECONDS
from vgsplus.evaluation.pointing.localise import STEP, Localisation, corpus_picture, localise
from vgsplus.report.gallery import MOMENTS, shades
from vgsplus.search.index import Index, nearest

SHOWN_PICTURES, SHOWN_CAPTIONS = 24, 50


class Chosen(NamedTuple):
    """What a visitor has chosen.

    Attributes:
        caption: row of a caption, or None.
        recording: embedding (D,) of a recording or file of the visitor, or None. Not both.
        samples: of the recording, at 16 kHz.
        picture: row of a picture, or None.
    """

    caption: int | None = None
    recording: Tensor | None = None
    samples: audio.Signal | None = None
    picture: int | None = None


class Card(NamedTuple):
    """A picture or caption on the page; `own`: it belongs to what it is ranked for."""

    row: int
    name: str
    rank: int | None = None
    score: str | None = None
    own: bool = False
    chosen: bool = False
    by: str = ""


class Page:
    """What the page shows of an index, and its events.

    Args:
        index: what is searched.
        started: text that differs whenever the server is started, which keeps a browser from showing the
            pictures of another corpus.
    """

    def __init__(self, index: Index, started: str) -> None:
        self._index = index
        self._own: dict[int, set[int]] = {}
        for row, image in enumerate(index.image_of_caption):
            self._own.setdefault(image, set()).add(row)
        self._folded = [(caption.text or caption.id).casefold() for caption in index.captions]
        environment = Environment(
            loader=PackageLoader("vgsplus.search", ""),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        training = index.model.about.get("training")
        variables: dict[str, Any] = {
            "picture": lambda row: f"picture/{row}?{started}",
            "sound": lambda row: f"sound/{row}?{started}",
            "corpus": index.corpus.name,
            "split": index.split,
            "num_images": len(index.image_ids),
            "num_captions": len(index.captions),
            "model": training["phase"] if isinstance(training, dict) and "phase" in training else "published",
        }
        self._parts: Any = environment.get_template("page.html.j2").make_module(variables)

    def blocks(self) -> Any:  # noqa: ANN401 - a gradio.Blocks
        """Return the page."""
        import gradio as gr  # noqa: PLC0415 - an extra

        script = (Path(__file__).parent / "page.js").read_text(encoding="utf-8")
        part = partial(gr.HTML, js_on_load=script, apply_default_css=False)
        with gr.Blocks(
            title=f"Search in {self._index.corpus.name}", analytics_enabled=False, delete_cache=(600, 3600)
        ) as blocks:
            part(self._parts.header())
            chosen = gr.State(Chosen())
            with gr.Row(elem_id="columns"):
                with gr.Column(elem_id="speech", scale=4, min_width=320):
                    recording = gr.Audio(
                        sources=["microphone", "upload"],
                        type="filepath",
                        label="Speak, or drop a sound file",
                        buttons=[],
                        elem_id="recording",
                    )
                    words = gr.Textbox(
                        label="Words in captions",
                        show_label=False,
                        placeholder="Find captions by their words",
                        elem_id="words",
                    )
                    captions = part()
                with gr.Column(elem_id="sight", scale=7, min_width=320):
                    pair = part(elem_id="pair")
                    pictures = part()
            parts = [captions, pair, pictures]
            quiet = {"api_visibility": "private", "show_progress": "hidden"}
            blocks.load(self._show, [chosen, words], parts, **quiet)
            words.change(self._captions, [chosen, words], captions, trigger_mode="always_last", **quiet)
            recorded = recording.change(
                self._embed_recording, [chosen, words, recording], [chosen, *parts], **quiet
            )

            def pick_caption(now: Chosen, words: str, event: gr.EventData) -> tuple[Any, ...]:
                row = _checked(event.row, len(self._index.captions))
                now = now._replace(caption=None if row == now.caption else row, recording=None)
                return now, None, *self._show(now, words)

            def pick_picture(now: Chosen, words: str, event: gr.EventData) -> tuple[Any, ...]:
                row = _checked(event.row, len(self._index.image_ids))
                now = now._replace(picture=None if row == now.picture else row)
                return now, *self._show(now, words)

            picked = [
                captions.select(pick_caption, [chosen, words], [chosen, recording, *parts], **quiet),
                *(
                    shown.select(pick_picture, [chosen, words], [chosen, *parts], **quiet)
                    for shown in (pictures, pair)
                ),
            ]
            for event in (recorded, *picked):  # a large model needs seconds for it
                event.then(partial(self._pair, located=True), chosen, pair, **quiet)
        return blocks

    def _embed_recording(self, now: Chosen, words: str, path: str | None) -> tuple[Any, ...]:
        import gradio as gr  # noqa: PLC0415 - an extra

        if path is None:
            now = now._replace(recording=None)
        elif not Path(path).is_file():  # a URL, which would be read
            raise gr.Error("There is no such file.", print_exception=False)
        else:
            try:
                samples = audio.load_any(path)
                cropped = len(samples) > MAX_SAMPLES
                samples = samples[:MAX_SAMPLES]
                embedding = self._index.model.encode_speech([samples])[0]
                now = now._replace(caption=None, recording=embedding, samples=samples)
            except VgsplusError as error:
                raise gr.Error(
                    str(error).replace(path, Path(path).name), title="This sound", print_exception=False
                ) from None
            if cropped:
                gr.Info(f"The first {MAX_SECONDS:g} seconds are searched for, as in evaluation.")
        return now, *self._show(now, words)

    def _show(self, now: Chosen, words: str) -> tuple[str, str, str]:
        return self._captions(now, words), self._pair(now), self._pictures(now)

    def _query(self, now: Chosen) -> Tensor | None:
        return now.recording if now.caption is None else self._index.speech[now.caption]

    def _captions(self, now: Chosen, words: str) -> str:
        index = self._index
        wanted = words.casefold().split()
        rows = torch.tensor(
            [row for row, text in enumerate(self._folded) if all(word in text for word in wanted)]
            if wanted
            else range(len(index.captions)),
            dtype=torch.long,
        )
        scores: list[float] | None = None
        found, total = rows, len(rows)
        if now.picture is not None and total:
            candidates = index.speech[rows] if wanted else index.speech
            best, order = nearest(index.images[now.picture], candidates, SHOWN_CAPTIONS)
            found, scores = rows[order], best.tolist()
            title = "Captions, ranked for the picture"
        elif wanted:
            found = rows[:SHOWN_CAPTIONS]
            title = f"{min(total, SHOWN_CAPTIONS):,} of {total:,} captions with these words"
        else:
            found = rows[_spaced(total, SHOWN_CAPTIONS)]
            title = f"{len(found):,} of {total:,} captions"
        own = self._own.get(now.picture, set()) if now.picture is not None else set()
        cards = [
            Card(
                row=row,
                name=_text(caption := index.captions[row]),
                score=None if scores is None else _number(scores[place]),
                own=row in own,
                chosen=row == now.caption,
                by=f"{caption.speaker} · {caption.num_samples / audio.SAMPLE_RATE:.1f} s",
            )
            for place, row in enumerate(found.tolist())
        ]
        return str(self._parts.captions(title, cards, own=any(card.own for card in cards)))

    def _pictures(self, now: Chosen) -> str:
        index, query = self._index, self._query(now)
        if query is None:
            rows = _spaced(len(index.image_ids), SHOWN_PICTURES).tolist()
            title = f"{len(rows)} of {len(index.image_ids):,} pictures"
            cards = [Card(row=row, name=index.image_ids[row], chosen=row == now.picture) for row in rows]
            return str(self._parts.pictures(title, cards, own=False, show=""))
        own = None if now.caption is None else index.image_of_caption[now.caption]
        scores, order = nearest(query, index.images, SHOWN_PICTURES)
        cards = [
            Card(
                row=row,
                name=index.image_ids[row],
                rank=place,
                score=_number(score),
                own=row == own,
                chosen=row == now.picture,
            )
            for place, (row, score) in enumerate(zip(order.tolist(), scores.tolist(), strict=True), start=1)
        ]
        show = "" if now.picture is not None else _key(now)  # else the pair is what is new
        title = "Pictures, ranked for the recording"
        if now.caption is not None:
            title = f"Pictures, ranked for “{_text(index.captions[now.caption])}”"
        return str(self._parts.pictures(title, cards, own=any(card.own for card in cards), show=show))

    def _pair(self, now: Chosen, *, located: bool = False) -> str:
        index, query = self._index, self._query(now)
        if now.picture is None:
            return ""
        shown = Card(row=now.picture, name=index.image_ids[now.picture])
        pair = partial(self._parts.pair, show=_key(now), caption=now.caption)
        if query is None:
            return str(pair(shown, None))
        scores = index.images @ query
        score = scores[now.picture]
        shown = shown._replace(score=_number(float(score)))
        said = "Your recording"
        if now.caption is not None:
            said = f"“{_text(index.captions[now.caption])}”"
            shown = shown._replace(own=index.image_of_caption[now.caption] == now.picture)
        found = self._locate(now) if located else None
        place, count = int((scores > score).sum()) + 1, len(scores)
        if found is None:
            return str(pair(shown, said, place, count))
        step = 2 * float(found.times[0])  # times are the centres of the steps
        times = _shares(found.time_scores).tolist()
        png = base64.b64encode(shades(found.boxes, found.region_scores, found.scores)).decode()
        uri = f"data:image/png;base64,{png}"
        return str(pair(shown, said, place, count, shades=uri, step=step, times=times))

    def _locate(self, now: Chosen) -> Localisation | None:
        """Return where in the chosen picture and when in the sound they agree, in about MOMENTS steps."""
        index, model = self._index, self._index.model
        assert now.picture is not None
        try:
            samples = now.samples
            if now.caption is not None:
                samples = audio.read_crop(index.corpus.audio_path(index.captions[now.caption]), MAX_SAMPLES)[
                    0
                ]
            assert samples is not None
            inputs = corpus_picture(model, index.corpus, index.image_ids[now.picture])
            step = len(samples) / audio.SAMPLE_RATE / MOMENTS
            return localise(model, audio.normalise(samples), inputs, step=max(step, STEP))
        except VgsplusError:  # the ranks are shown all the same
            return None


def _checked(row: object, count: int) -> int | None:
    """Return a row that a browser sent, or None if there is no such row."""
    return row if isinstance(row, int) and 0 <= row < count else None


def _spaced(total: int, count: int) -> Tensor:
    """Return up to `count` numbers below `total`, evenly spaced, because neighbours are similar."""
    shown = min(total, count)
    return torch.arange(shown) * total // max(shown, 1)


def _key(now: Chosen) -> str:
    """Return a text that differs between choices."""
    recording = None if now.recording is None else float(now.recording.sum())
    return f"{now.caption} {recording} {now.picture}"


def _shares(scores: Tensor) -> Tensor:
    """Return scores as shares of the largest, negative ones as 0."""
    positive = scores.clamp(min=0)
    return positive / positive.max().clamp(min=1e-12)


def _text(caption: Caption) -> str:
    return caption.text or caption.id


def _number(score: float) -> str:
    return f"{score:.2f}".replace("-", "−")
