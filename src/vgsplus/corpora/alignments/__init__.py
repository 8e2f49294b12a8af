"""Alignments: the times of the phones or words of sounds, read from files of several programs.

    *.TextGrid        Praat and the Montreal Forced Aligner (`textgrid`): phones and words
    *.ctm             NIST and Kaldi (`label_files`): phones or words of many sounds
    *.lab             ESPS xlabel, of festvox: phones; *.wrd: words
    *.PHN, *.WRD      TIMIT: phones and words
    *.alignment.txt   words of LibriSpeech
    *.item            items of words, if it is named itself

`folder` finds the alignments and their sounds, `abx` makes ABX items of them.
"""
