#!/usr/bin/env node
import bundled = require('./bundled.cjs');

void bundled.startProgram('pcow-img');
