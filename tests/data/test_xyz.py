"""Cutting XYZ into frames."""

import io

from e2former_pyg.data.xyz import xyz_frames

FRAME = "2\ncomment {}\nH 0 0 0\nH 0 0 1\n"


class Counting(io.StringIO):
    """A stream that counts the lines that were read."""

    lines = 0

    def readline(self, *args):
        self.lines += 1
        return super().readline(*args)


def test_one_frame_at_a_time():
    file = Counting("".join(FRAME.format(index) for index in range(1000)))
    for index, text in enumerate(xyz_frames(file)):
        assert text == FRAME.format(index)
        assert file.lines <= 4 * (index + 1) + 1
    assert index == 999


def test_lattice_vectors_after_the_atoms_belong_to_the_frame():
    text = FRAME + "VEC1 1 0 0\nVEC2 0 1 0\nVEC3 0 0 1\n"
    assert list(xyz_frames(io.StringIO(text + FRAME))) == [text, FRAME]


def test_comments_may_be_numbers_or_empty():
    frames = ["1\n7\nH 0 0 0\n", "1\n\nH 0 0 0\n"]
    assert list(xyz_frames(io.StringIO("".join(frames)))) == frames


def test_frames_after_damage_are_found():
    frame = FRAME.format(0)
    damages = {
        "2\ncomment\nH 0 0 0\n": "expected 2 atoms, found 1",
        "999999999\ncomment\nH 0 0 0\n": "expected 999999999 atoms, found 1",
        "2\ncomment\n": "expected 2 atoms, found 0",
        "H 0 0 0\nH 0 0 1\n": "expected the number of atoms of a frame, found 'H 0 0 0'",
        "-2\ncomment\n": "expected the number of atoms of a frame, found '-2'",
    }
    for text, message in damages.items():
        for content in (text + frame, frame + text + frame, frame + text):
            found = list(xyz_frames(io.StringIO(content)))
            assert [str(item) for item in found if isinstance(item, ValueError)] == [message]
            assert [item for item in found if item != frame and isinstance(item, str)] == []
            assert found.count(frame) == content.count(frame)


def test_empty_stream():
    assert list(xyz_frames(io.StringIO("\n\n"))) == []
