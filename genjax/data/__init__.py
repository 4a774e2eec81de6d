"""Data sets: how raw examples become batches of a step, and how samples become something to look at."""

from genjax.data.audio import Waveforms
from genjax.data.base import ArrayExamples, Data, DataError, Examples, HasOutline, HasPrompts, Outline
from genjax.data.captioned import CaptionedImages
from genjax.data.captioned_videos import CaptionedVideos
from genjax.data.evidence import Evidence
from genjax.data.hinted import HintedImages
from genjax.data.images import Images, write_grid
from genjax.data.interleaved import Interleaved
from genjax.data.latents import Latents
from genjax.data.molecules import Molecules
from genjax.data.music import NoteEvents, PianoRolls
from genjax.data.picture_questions import PictureQuestions
from genjax.data.pipeline import (
    Pipeline,
    check_not_empty,
    evaluation_batches,
    first_examples,
    full_batches,
    random_order,
)
from genjax.data.points import Points
from genjax.data.sequences import TimeSeries, TokenPairs
from genjax.data.spoken_texts import SpokenTexts
from genjax.data.subject import SubjectImages
from genjax.data.text.chat import Chat
from genjax.data.text.encoder import EncoderText
from genjax.data.text.knowledge import KnowledgeQuestions
from genjax.data.text.labelled import LabelledText, LabelledTokens
from genjax.data.text.pairs import TextToText
from genjax.data.text.preferences import Preferences
from genjax.data.text.prompted import PromptedText
from genjax.data.text.python_source import PythonSource
from genjax.data.text.questions import QuestionAnswering
from genjax.data.text.windows import Text
from genjax.data.translations import Translations
from genjax.data.videos import Videos

__all__ = [
    "ArrayExamples",
    "Chat",
    "CaptionedImages",
    "CaptionedVideos",
    "Data",
    "DataError",
    "EncoderText",
    "Evidence",
    "Examples",
    "HasOutline",
    "HasPrompts",
    "HintedImages",
    "Images",
    "KnowledgeQuestions",
    "Interleaved",
    "LabelledText",
    "LabelledTokens",
    "Latents",
    "Molecules",
    "NoteEvents",
    "Outline",
    "PianoRolls",
    "PictureQuestions",
    "Pipeline",
    "Points",
    "Preferences",
    "PythonSource",
    "QuestionAnswering",
    "SpokenTexts",
    "SubjectImages",
    "Text",
    "PromptedText",
    "TextToText",
    "TimeSeries",
    "TokenPairs",
    "Translations",
    "Videos",
    "Waveforms",
    "check_not_empty",
    "evaluation_batches",
    "first_examples",
    "full_batches",
    "random_order",
    "write_grid",
]
