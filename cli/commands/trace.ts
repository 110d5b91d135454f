import type { Command } from 'commander';
import { lazyImagesOf } from '../../src/client/prefetch.js';
import { findImage, whileWaiting } from '../find-image.js';
import { Failure } from '../output/errors.js';
import { addNotes } from '../output/help.js';
import { say, sayJson } from '../output/stdout.js';

export function addTrace(program: Command): void {
  const command = program
    .command('trace')
    .summary('keep in a registry what a guest reads first')
    .description(
      'Pushes which parts of a lazy image guests have needed so far, and in which order, to the ' +
        'registry of that image. Lazy images that are made later fetch these first.',
    )
    .argument('<image>', 'the lazy image, or an image on it; its directory must be mounted')
    .option('--json', 'for programs')
    .action(trace);
  addNotes(command, {
    text: [
      'The mount records what it fetches for readers. So make a new lazy image, boot a guest on it, and ' +
        'push the trace when the guest is up. A trace replaces the one before. It needs the right to push.',
    ],
    examples: [
      {
        command: 'pcow create images/vm1 --base registry.example.org/images/golden:v1',
        does: 'then boot a guest on it',
      },
      { command: 'pcow trace images/vm1', does: 'the next guests start sooner' },
    ],
  });
}

async function trace(given: string, { json }: { json?: boolean }): Promise<void> {
  const image = await findImage(given);
  const [lazy] = await lazyImagesOf(image, whileWaiting);
  if (lazy === undefined) {
    throw new Failure(
      'PCOW_NOT_FOUND',
      `${image.name} is not lazy, and stands on no lazy image`,
      'make one: pcow pull --lazy, or pcow create --base REGISTRY/REPO:TAG',
    );
  }
  const { pushTraceOf } = await import('../../src/client/push-trace.js');
  const pushed = await pushTraceOf(lazy.image, whileWaiting);
  if (json === true) sayJson({ image: lazy.image.name, ...pushed });
  else say(`pushed a trace of ${lazy.image.name}: ${pushed.pieces} pieces\n${pushed.digest}`);
}
