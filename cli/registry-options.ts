/** The options of the commands that talk to a registry. */
import { type Command, Option } from 'commander';
import { parseLimit } from '../src/images/sizes.js';

export interface RegistryFlags {
  plainHttp?: boolean;
  ca?: string[];
}

export function addRegistryOptions(command: Command): Command {
  return command
    .option('--plain-http', 'use HTTP without TLS; default: HTTPS only')
    .addOption(
      new Option(
        '--ca <file>',
        'trust the authorities in this file, too; may be repeated',
      ).argParser((file: string, before: string[] | undefined) => [...(before ?? []), file]),
    );
}

/** For commands that may make a lazy image. */
export function limitOption(): Option {
  return new Option(
    '--limit <size>',
    'let the lazy image keep so much of what it has fetched, at least 64M; default: everything',
  ).argParser(parseLimit);
}

export function httpOf({ plainHttp, ca }: RegistryFlags): {
  plainHttp: boolean;
  certificates: string[];
} {
  return { plainHttp: plainHttp ?? false, certificates: ca ?? [] };
}
