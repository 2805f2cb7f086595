#!/usr/bin/env python3
"""Writes the King James Version as plain text: a verse a line, a blank line between books.

usage: make_kjv.py FILE     (tools/bootstrap kjv installs the Debian packages bible-kjv and bible-kjv-text and calls it)
"""
import re
import subprocess
import sys

# Book names as `bible` abbreviates them and as diatheke spells them.
BOOKS = [tuple(book.split("=")) for book in (
    "Ge=Genesis,Exo=Exodus,Lev=Leviticus,Num=Numbers,Deu=Deuteronomy,Josh=Joshua,Jdgs=Judges,Ruth=Ruth,1Sm=I Samuel,"
    "2Sm=II Samuel,1Ki=I Kings,2Ki=II Kings,1Chr=I Chronicles,2Chr=II Chronicles,Ezra=Ezra,Neh=Nehemiah,Est=Esther,"
    "Job=Job,Psa=Psalms,Prv=Proverbs,Eccl=Ecclesiastes,SSol=Song of Solomon,Isa=Isaiah,Jer=Jeremiah,Lam=Lamentations,"
    "Eze=Ezekiel,Dan=Daniel,Hos=Hosea,Joel=Joel,Amos=Amos,Obad=Obadiah,Jonah=Jonah,Mic=Micah,Nahum=Nahum,Hab=Habakkuk,"
    "Zep=Zephaniah,Hag=Haggai,Zec=Zechariah,Mal=Malachi,Mat=Matthew,Mark=Mark,Luke=Luke,John=John,Acts=Acts,Rom=Romans,"
    "1Cor=I Corinthians,2Cor=II Corinthians,Gal=Galatians,Eph=Ephesians,Phi=Philippians,Col=Colossians,"
    "1Th=I Thessalonians,2Th=II Thessalonians,1Tim=I Timothy,2Tim=II Timothy,Titus=Titus,Phmn=Philemon,Heb=Hebrews,"
    "Jas=James,1Pet=I Peter,2Pet=II Peter,1Jn=I John,2Jn=II John,3Jn=III John,Jude=Jude,Rev=Revelation of John").split(",")]


def clean(text):
    text = re.sub(r"\s+", " ", text).strip()
    return re.sub(r" +([,.;:?!’”])", r"\1", text)


def read_kjv():
    """{(book, chapter, verse): text} of the King James Version."""
    printed = subprocess.run(["bible", "-f"], input="gen1:1-rev22:21\n", capture_output=True, text=True).stdout
    number = {short: i + 1 for i, (short, _) in enumerate(BOOKS)}
    number["Re"] = number["Rev"]
    verses = {}
    for line in printed.splitlines():
        found = re.match(r"(?:.*\]> )?(\d?[A-Za-z]+)(\d+):(\d+) (.*)$", line)
        if found and found.group(1) in number:
            verses[number[found.group(1)], int(found.group(2)), int(found.group(3))] = clean(found.group(4))
    return verses


def write_corpus(path, verses):
    with open(path, "w", encoding="utf-8", newline="\n") as file:
        last = None
        for key in sorted(verses):
            if last and last != key[0]:
                file.write("\n")
            last = key[0]
            file.write(verses[key] + "\n")


if __name__ == "__main__":
    write_corpus(sys.argv[1], read_kjv())
