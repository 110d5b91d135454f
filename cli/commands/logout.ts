import type { Command } from 'commander';
import { logoutOfRegistry } from '../../src/registry/index.js';
import { parseHost } from '../../src/registry/reference.js';
import { Failure } from '../output/errors.js';
import { addNotes } from '../output/help.js';
import { say } from '../output/stdout.js';

export function addLogout(program: Command): void {
  const command = program
    .command('logout')
    .summary('forget the credentials for a registry')
    .description('Removes what “pcow login” keeps for a registry.')
    .argument('<host>', 'HOST or HOST:PORT of the registry')
    .action(logout);
  addNotes(command, {
    examples: [{ command: 'pcow logout registry.example.org', does: 'forgets the password' }],
  });
}

async function logout(given: string): Promise<void> {
  const host = parseHost(given);
  if (!(await logoutOfRegistry(host))) {
    throw new Failure(
      'PCOW_NOT_FOUND',
      `there are no credentials for ${host}`,
      'nothing to forget',
    );
  }
  say(`logged out of ${host}`);
}
