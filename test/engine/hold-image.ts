/** A process that has an image open for writing until it is killed. */
import { Image } from '../../src/engine/index.js';

const image = await Image.open(process.argv[2] ?? '', { write: true });
process.stdout.write('open\n');
process.stdin.on('end', () => void image.close()).resume();
