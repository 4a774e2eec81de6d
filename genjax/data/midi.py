"""Piano rolls: written to and read from MIDI files (Standard MIDI File 1.0), and turned into sound.

A roll is bool [T, 88]; column k is the MIDI note 21 + k.  A note that sounds on in the next frame is held.
"""

from __future__ import annotations

import io
import struct
import wave

import numpy as np

from genjax.data.base import DataError
from genjax.errors import UserError

NUM_NOTES = 88
LOWEST_NOTE = 21  # MIDI number of column 0
SECONDS_PER_FRAME = 0.4  # of files and of sound
_DRUMS = 9  # channel whose numbers are no pitches


def _held(roll: np.ndarray) -> np.ndarray:
    """A roll with a silent frame before and after.

    Raises:
      UserError: the roll has another number of notes.
    """
    if roll.ndim != 2 or roll.shape[1] != NUM_NOTES:
        raise UserError(f"a roll has the shape (frames, {NUM_NOTES}), and this one {roll.shape}")
    silence = np.zeros((1, NUM_NOTES), bool)
    return np.concatenate([silence, roll.astype(bool), silence])


def midi(roll: np.ndarray, ticks_per_frame: int = 480) -> bytes:
    """A MIDI file of one track, as fast as `synthesize` plays it.

    Args:
      roll: bool [T, 88].
      ticks_per_frame: length of a frame; 480 are a quarter note.

    Raises:
      UserError: the roll has another number of notes.
    """
    padded = _held(roll)
    microseconds_per_quarter = round(1e6 * SECONDS_PER_FRAME * 480 / ticks_per_frame)
    track, waiting = bytearray(b"\x00\xff\x51\x03" + microseconds_per_quarter.to_bytes(3, "big")), 0
    for frame in range(1, len(padded)):
        for status, notes in ((0x80, padded[frame - 1] & ~padded[frame]), (0x90, padded[frame] & ~padded[frame - 1])):
            for note in np.flatnonzero(notes):
                track += _variable_length(waiting) + bytes([status, LOWEST_NOTE + int(note), 80])
                waiting = 0
        waiting += ticks_per_frame
    track += b"\x00\xff\x2f\x00"
    return b"MThd" + struct.pack(">IHHH", 6, 0, 1, 480) + b"MTrk" + struct.pack(">I", len(track)) + bytes(track)


def _variable_length(value: int) -> bytes:
    parts = [value & 0x7F]
    while value := value >> 7:
        parts.append(0x80 | (value & 0x7F))
    return bytes(reversed(parts))


def read_midi(content: bytes, name: str, frames_per_quarter: int = 1) -> np.ndarray:
    """The roll of a MIDI file, uint8 [T, 88]: ends of notes are rounded to frames, and drums left out.

    Args:
      content: the file.
      name: name of the file in messages.
      frames_per_quarter: frames of a quarter note.

    Raises:
      DataError: the file is damaged, measures time in seconds, or has a note that no piano has.
    """
    if content[:4] != b"MThd" or len(content) < 14:
        raise DataError(f"{name} is no MIDI file: it does not begin with MThd")
    size, _, _, division = struct.unpack(">IHHH", content[4:14])
    if division & 0x8000 or not division:
        raise DataError(f"{name} measures time in seconds and not in quarter notes, so it has no frames")
    notes: list[tuple[int, int, int]] = []
    place = 8 + size
    try:
        while place < len(content):
            kind, length = content[place : place + 4], struct.unpack(">I", content[place + 4 : place + 8])[0]
            if kind == b"MTrk":
                notes += _track_notes(content[place + 8 : place + 8 + length])
            place += 8 + length
    except (IndexError, struct.error):
        raise DataError(f"{name} is damaged: a MIDI track ends in the middle of an event") from None
    outside = [note for note, _, _ in notes if not LOWEST_NOTE <= note < LOWEST_NOTE + NUM_NOTES]
    if outside:
        raise DataError(
            f"{name} has the MIDI note {outside[0]}, which lies outside a piano's {NUM_NOTES} notes "
            f"{LOWEST_NOTE} to {LOWEST_NOTE + NUM_NOTES - 1}; transpose or remove it"
        )
    frame = lambda tick: (2 * tick * frames_per_quarter + division) // (2 * division)
    spans = [(note - LOWEST_NOTE, frame(on), max(frame(off), frame(on) + 1)) for note, on, off in notes]
    roll = np.zeros((max((end for _, _, end in spans), default=0), NUM_NOTES), np.uint8)
    for note, begin, end in spans:
        roll[begin:end, note] = 1
    return roll


def _track_notes(track: bytes) -> list[tuple[int, int, int]]:
    """Notes of a track as (MIDI number, first tick, last tick)."""
    place, tick, status = 0, 0, 0
    sounding: dict[tuple[int, int], int] = {}
    notes = []

    def number() -> int:
        nonlocal place
        value = 0
        while True:
            byte = track[place]
            place, value = place + 1, value << 7 | byte & 0x7F
            if byte < 0x80:
                return value

    while place < len(track):
        tick += number()
        event = status  # without a status byte the last note's or control's status holds, also after a text or a tempo
        if track[place] >= 0x80:
            event, place = track[place], place + 1
            status = event if event < 0xF0 else status
        if event in (0xFF, 0xF0, 0xF7):
            place += event == 0xFF
            length = number()  # moves `place` itself
            place += length
            continue
        kind, channel = event >> 4, event & 0xF
        first, second = track[place], 0 if kind in (0xC, 0xD) else track[place + 1]
        place += 1 if kind in (0xC, 0xD) else 2
        if kind not in (0x8, 0x9) or channel == _DRUMS:
            continue
        begun = sounding.pop((channel, first), None)
        if begun is not None:
            notes.append((first, begun, tick))
        if kind == 0x9 and second:
            sounding[channel, first] = tick
    return notes + [(note, begun, tick) for (_, note), begun in sounding.items()]


def synthesize(roll: np.ndarray, seconds_per_frame: float = SECONDS_PER_FRAME, rate: int = 16_000) -> np.ndarray:
    """The sound of a roll: decaying harmonics of every note from where it begins.

    Returns:
      float32 waveform in [-1, 1], [round(T * seconds_per_frame * rate) + tail of half a second].
    """
    padded = _held(roll)
    samples = round(seconds_per_frame * rate)
    tail = rate // 2
    sound = np.zeros((len(padded) - 2) * samples + tail, np.float32)
    for note in np.flatnonzero(roll.any(0)):
        edges = np.diff(padded[:, note].astype(np.int8))
        for begin, end in zip(np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)):
            time = np.arange((end - begin) * samples + tail) / rate
            pitch = 440.0 * 2.0 ** ((LOWEST_NOTE + note - 69) / 12)
            tone = sum(
                np.sin(2 * np.pi * k * pitch * time) * np.exp(-k * time) / k**1.5
                for k in range(1, 6)
                if k * pitch < rate / 2
            )
            released = np.clip((time - (end - begin) * seconds_per_frame) / (tail / rate), 0.0, 1.0)
            start = begin * samples
            sound[start : start + len(time)] += tone * (1.0 - released) * np.minimum(time / 0.01, 1.0)
    return sound / max(float(np.abs(sound).max(initial=0.0)), 1.0)


def wav(waveform: np.ndarray, rate: int = 16_000) -> bytes:
    """A WAV file of 16 bits of a waveform [N] in [-1, 1]; what lies beyond is clipped."""
    file = io.BytesIO()
    with wave.open(file, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(rate)
        out.writeframes((np.clip(waveform, -1.0, 1.0) * 32767).astype("<i2").tobytes())
    return file.getvalue()
