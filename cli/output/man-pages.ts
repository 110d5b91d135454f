/** The man pages of the programs, with the sections that do not fit into a help text. */
import { manPage, type Section } from './man-page.js';
import { mountHelperProgram } from '../mount-helper-program.js';
import { pcowImgProgram } from '../pcow-img-program.js';
import { pcowProgram } from '../pcow-program.js';

/** The file name in docs/man/, and the text. */
export async function manPages(): Promise<[string, string][]> {
  return [
    ['pcow.1', manPage(await pcowProgram(), 1, PCOW_SECTIONS)],
    ['pcow-img.1', manPage(pcowImgProgram(), 1, PCOW_IMG_SECTIONS)],
    ['mount.fuse.pcow.8', manPage(mountHelperProgram(), 8, MOUNT_HELPER_SECTIONS)],
  ];
}

const ENVIRONMENT: Section = {
  title: 'Environment',
  paragraphs: [
    'DEBUG=pcow:* logs what happens inside to standard error; DEBUG=pcow:cli* only what the program itself does.',
    'NO_COLOR turns colours off. There are none where the output is not a terminal.',
  ],
};

const PCOW_SECTIONS: Section[] = [
  {
    title: 'Names',
    paragraphs: [
      'An image is a file NAME.pcow; a mount shows it as NAME. Commands accept the path of either, and ' +
        '“.pcow” may be omitted.',
      'IMAGE@SNAPSHOT names a snapshot. The name of a snapshot has 1 to 255 bytes without “/”, “@”, white space and control characters.',
      'Sizes are bytes, or numbers with K, M, G or T, which are powers of 1024: 65536, 64K, 10G, 1.5T.',
    ],
  },
  {
    title: 'Output',
    paragraphs: [
      'With --json commands print JSON. Names are written like diskUse; sizes and offsets are in bytes, ' +
        'times in ISO 8601, and other units are part of the name (p99Us, sumNs). Later versions may add ' +
        'fields, but never rename or remove them.',
      'Long commands show their progress on standard error: as a bar on a terminal, or with --progress ' +
        'json as lines of JSON. Ctrl-C stops a command and leaves every image sound, also through a mount.',
      'Errors go to standard error: a line that tells what happened to which image, and usually a line ' +
        'with the next step.',
    ],
  },
  ENVIRONMENT,
  {
    title: 'See also',
    paragraphs: ['pcow-img(1), mount.fuse.pcow(8), qemu-system-x86_64(1), fusermount3(1)'],
  },
];

const PCOW_IMG_SECTIONS: Section[] = [
  {
    title: 'Notes',
    paragraphs: [
      'Images of the original Pcow have another format: “pcow convert” makes images of them.',
      'Names are used as they are given. A mount shows only images whose names end in “.pcow”.',
      'Unlike in the original, a rollback keeps later snapshots, a snapshot never changes, and an error ' +
        'has an exit code that is not 0.',
    ],
  },
  ENVIRONMENT,
  { title: 'See also', paragraphs: ['pcow(1)'] },
];

const MOUNT_HELPER_SECTIONS: Section[] = [
  ENVIRONMENT,
  { title: 'See also', paragraphs: ['pcow(1), mount(8), fstab(5)'] },
];
