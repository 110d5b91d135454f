/** Runs qemu-img, for formats other than Pcow's. */
import { execFile } from 'node:child_process';
import { tmpdir } from 'node:os';
import { promisify } from 'node:util';
import { PcowError } from '../engine/index.js';
import { quote, word } from '../engine/quote.js';

const run = promisify(execFile);

/** `file`: the file named in messages. */
export async function qemuImg(
  file: string,
  signal: AbortSignal | undefined,
  ...words: string[]
): Promise<{ stdout: string }> {
  try {
    // LC_ALL=C, because its messages are compared.
    return await run('qemu-img', words, { signal, env: { ...process.env, LC_ALL: 'C' } });
  } catch (error) {
    if (signal?.aborted) {
      throw new PcowError('PCOW_CANCELLED', `the work on ${quote(file)} was stopped`, {
        cause: error,
      });
    }
    if (error instanceof Error && 'code' in error && error.code === 'ENOENT') {
      throw new PcowError(
        'PCOW_UNSUPPORTED',
        `${quote(file)} is not a Pcow image, and qemu-img, which is needed to read it, is not installed`,
        { next: 'install qemu-utils, or say that it is raw with its format option' },
      );
    }
    const said =
      error instanceof Error && 'stderr' in error ? String(error.stderr).trim() : String(error);
    if (said.includes('No space left on device')) {
      throw new PcowError(
        'PCOW_NO_SPACE',
        `qemu-img failed on ${quote(file)}, because the disk is full`,
        {
          next: `free space there, or in ${tmpdir()}, where a temporary copy is`,
        },
      );
    }
    throw new PcowError(
      'PCOW_NOT_AN_IMAGE',
      `qemu-img can't work on ${quote(file)}: ${said.replace(/^qemu-img: /, '').replace(/\/proc\/\d+\/fd\/\d+/g, 'its raw copy')}`,
      { next: `“qemu-img info ${word(file)}” shows its format; omit the format to detect it` },
    );
  }
}
