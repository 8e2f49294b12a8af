"""Files of the semantic test: scores by recording and by word."""

from pathlib import Path

import pandas as pd

from vgsplus.evaluation.semantic.scores import SemanticScores
from vgsplus.evaluation.semantic.word_pictures import WordPictures
from vgsplus.report.tables import write_csv

RECORDINGS, WORDS = "semantic.csv", "semantic_words.csv"


def write_semantic(table: WordPictures, scores: SemanticScores, folder: Path) -> None:
    """Write semantic.csv and semantic_words.csv to a folder, each atomically.

    semantic.csv has a row for each recording: word, category, sound, number of own pictures, their mean rank,
    score, and score as published. semantic_words.csv has a row for each word: the means, and the interval of
    the score (see `evaluation.semantic.scores`).
    """
    recordings = pd.DataFrame(
        {
            "word": table.words,
            "category": table.categories,
            "sound": [str(sound) for sound in table.sounds],
            "pictures": table.own.sum(axis=1),
            "rank": scores.rank,
            "score": scores.score,
            "published": scores.published,
        }
    )
    write_csv(recordings, folder / RECORDINGS)
    words = recordings.groupby("word").agg(
        category=("category", "first"),
        recordings=("sound", "size"),
        pictures=("pictures", "first"),
        rank=("rank", "mean"),
        score=("score", "mean"),
        low=("word", lambda word: scores.by_word[word.iloc[0]].low),
        high=("word", lambda word: scores.by_word[word.iloc[0]].high),
        published=("published", "mean"),
    )
    write_csv(words, folder / WORDS, index=True)
